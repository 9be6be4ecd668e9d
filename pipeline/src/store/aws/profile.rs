//! The profiles of `~/.aws/config` and `~/.aws/credentials`: parsing only.
use std::collections::BTreeMap;
use std::path::PathBuf;

use super::keys::CredentialError;
use crate::store::StoreOptions;

/// Keys and values of one section; a key of a nested value is `parent.key`.
type Values = BTreeMap<String, String>;

/// Both files, read.
#[derive(Default)]
pub(super) struct Profiles {
    /// By the name of the profile.
    own: BTreeMap<String, Values>,
    sso_sessions: BTreeMap<String, Values>,
    services: BTreeMap<String, Values>,
    /// The files, whether they are there or not.
    files: Vec<PathBuf>,
}

impl Profiles {
    /// Reads the files as they are now. One that is absent or unreadable says nothing; what is
    /// missing is told by whoever needs it.
    pub(super) fn read(options: &StoreOptions) -> Self {
        let home = options.get("HOME").map(PathBuf::from);
        let file = |variable: &str, usual: &str| {
            let named = options.get(variable).map(PathBuf::from);
            named.or_else(|| Some(home.as_ref()?.join(usual)))
        };
        let mut profiles = Self::default();
        // What the credentials say goes before what the config says.
        for path in [
            file("AWS_CONFIG_FILE", ".aws/config"),
            file("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials"),
        ]
        .into_iter()
        .flatten()
        {
            profiles.add(&std::fs::read_to_string(&path).unwrap_or_default());
            profiles.files.push(path);
        }
        profiles
    }

    /// The name of the profile in use, and whether somebody asked for it.
    pub(super) fn chosen(options: &StoreOptions) -> (String, bool) {
        let asked = options
            .get("AWS_PROFILE")
            .or_else(|| options.get("AWS_DEFAULT_PROFILE"));
        let default = || "default".to_owned();
        (asked.clone().unwrap_or_else(default), asked.is_some())
    }

    /// The value of a key, if the profile has it.
    pub(super) fn get(&self, profile: &str, key: &str) -> Option<&str> {
        get(&self.own, profile, key)
    }

    /// The value of a key of an `[sso-session ...]`.
    pub(super) fn sso_session(&self, name: &str, key: &str) -> Option<&str> {
        get(&self.sso_sessions, name, key)
    }

    /// The endpoint of a service: of the profile's `services`, or its own.
    pub(super) fn endpoint(&self, profile: &str, service: &str) -> Option<&str> {
        self.get(profile, "services")
            .and_then(|name| get(&self.services, name, &format!("{service}.endpoint_url")))
            .or_else(|| self.get(profile, "endpoint_url"))
    }

    /// That there must be such a profile; `by` names who says so.
    pub(super) fn must_have(&self, profile: &str, by: &str) -> Result<(), CredentialError> {
        if self.own.contains_key(profile) {
            return Ok(());
        }
        let files = self.files.iter().map(|file| file.display().to_string());
        Err(CredentialError::NoProfile {
            profile: profile.to_owned(),
            by: by.to_owned(),
            files: files.collect(),
            known: self.own.keys().cloned().collect(),
        })
    }

    fn add(&mut self, text: &str) {
        let mut section = None;
        let mut parent = String::new();
        for line in text.trim_start_matches('\u{feff}').lines() {
            let indented = line.starts_with([' ', '\t']);
            let line = without_comment(line).trim();
            if line.is_empty() {
                continue;
            }
            if let Some(header) = line.strip_prefix('[') {
                let header = header.split(']').next().unwrap_or_default().trim();
                section = Some(self.section(header));
                continue;
            }
            let (Some(values), Some((key, value))) = (&mut section, line.split_once('=')) else {
                continue;
            };
            let (key, value) = (key.trim().to_ascii_lowercase(), value.trim().to_owned());
            if indented {
                values.insert(format!("{parent}.{key}"), value);
            } else {
                parent.clone_from(&key);
                values.insert(key, value);
            }
        }
    }

    fn section(&mut self, header: &str) -> &mut Values {
        let (kind, name) = header.split_once([' ', '\t']).unwrap_or(("", header));
        let (sections, name) = match kind {
            "profile" => (&mut self.own, name),
            "sso-session" => (&mut self.sso_sessions, name),
            "services" => (&mut self.services, name),
            _ => (&mut self.own, header),
        };
        let name = name.trim();
        let quoted = ['"', '\'']
            .iter()
            .find_map(|&quote| name.strip_prefix(quote)?.strip_suffix(quote));
        sections
            .entry(quoted.unwrap_or(name).to_owned())
            .or_default()
    }
}

fn get<'a>(sections: &'a BTreeMap<String, Values>, name: &str, key: &str) -> Option<&'a str> {
    let value = sections.get(name)?.get(key)?;
    (!value.is_empty()).then_some(value)
}

/// A comment begins a line, or stands behind a space.
fn without_comment(line: &str) -> &str {
    let bytes = line.as_bytes();
    let start = (0..bytes.len()).find(|&at| {
        matches!(bytes[at], b'#' | b';') && (at == 0 || bytes[at - 1].is_ascii_whitespace())
    });
    &line[..start.unwrap_or(line.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_clouds_own_tools_read() {
        let mut profiles = Profiles::default();
        profiles.add(
            "\u{feff}[default]\nAWS_Access_Key_Id = A#B\n# no\n; no\n[profile \"my team\"] # ours\nregion=eu-west-1\t; here\n\
             s3 =\n  max_concurrent_requests = 3\nendpoint_url = http://127.0.0.1:9000 # local\nservices = near\n\
             [profile 'x']\nregion = y\n[services near]\ns3 =\n    endpoint_url = https://near\nsts =\n\tendpoint_url=https://sts\n\
             [sso-session corp]\nsso_region = us-west-2\n",
        );
        profiles.add("[my team]\nregion = eu-west-2\nempty =\n");
        let get = |profile, key| profiles.get(profile, key);
        assert_eq!(get("default", "aws_access_key_id"), Some("A#B"));
        assert_eq!(get("my team", "region"), Some("eu-west-2"));
        assert_eq!(
            get("my team", "endpoint_url"),
            Some("http://127.0.0.1:9000")
        );
        assert_eq!(get("my team", "empty"), None);
        assert_eq!(get("my team", "max_concurrent_requests"), None);
        assert_eq!(get("x", "region"), Some("y"));
        assert_eq!(profiles.endpoint("my team", "s3"), Some("https://near"));
        assert_eq!(profiles.endpoint("my team", "sts"), Some("https://sts"));
        assert_eq!(
            profiles.endpoint("my team", "sso"),
            Some("http://127.0.0.1:9000")
        );
        assert_eq!(
            profiles.sso_session("corp", "sso_region"),
            Some("us-west-2")
        );
        let error = profiles
            .must_have("teem", "AWS_PROFILE")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("default, my team, x") && error.contains("AWS_PROFILE"),
            "{error}"
        );
    }
}
