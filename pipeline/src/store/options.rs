//! Settings of the stores: the clouds' environment variables, and what a program sets above them.
use std::collections::BTreeMap;

/// Settings under the names of the clouds' environment variables, which take precedence over those;
/// an empty value counts as not set. For programs that embed the loader. Never written out, and
/// never shown, as some are secret.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct StoreOptions(BTreeMap<String, String>);

impl StoreOptions {
    /// From pairs such as `("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")`.
    pub fn new<K: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        Self(
            pairs
                .into_iter()
                .map(|(key, value)| (key.into(), value.into()))
                .collect(),
        )
    }

    /// The setting in force, if it is set to something.
    pub(crate) fn get(&self, name: &str) -> Option<String> {
        self.0
            .get(name)
            .cloned()
            .or_else(|| std::env::var(name).ok())
            .filter(|value| !value.is_empty())
    }

    /// Whether any of these is set.
    pub(crate) fn any(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.get(name).is_some())
    }

    /// All settings in force whose name begins with `prefix`, sorted by name.
    pub(crate) fn with_prefix(&self, prefix: &str) -> BTreeMap<String, String> {
        let mut settings: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        settings.extend(self.0.clone());
        settings.retain(|name, value| name.starts_with(prefix) && !value.is_empty());
        settings
    }
}

impl std::fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_never_shown() {
        let options = StoreOptions::new([("AWS_SECRET_ACCESS_KEY", "hunter2")]);
        assert_eq!(format!("{options:?}"), r#"{"AWS_SECRET_ACCESS_KEY"}"#);
        assert_eq!(
            options.get("AWS_SECRET_ACCESS_KEY").as_deref(),
            Some("hunter2")
        );
    }

    #[test]
    fn an_empty_value_hides_the_environment() {
        let options = StoreOptions::new([("PATH", "")]);
        assert!(StoreOptions::default().any(&["PATH"]) && !options.any(&["PATH"]));
        assert!(options.with_prefix("PATH").is_empty());
    }
}
