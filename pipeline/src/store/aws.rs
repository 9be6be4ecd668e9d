//! S3's settings: environment variables first, then the profile in `~/.aws`, then the machine's role.
use std::collections::HashMap;
use std::path::PathBuf;

use object_store::ClientConfigKey;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};

use super::{Location, Provider, StoreOptions};
use crate::DatasetError;

/// A builder with credentials, region and endpoint set.
pub(super) fn builder(
    location: &Location,
    options: &StoreOptions,
) -> Result<AmazonS3Builder, DatasetError> {
    let mut builder = AmazonS3Builder::new();
    for (name, value) in options.with_prefix("AWS_") {
        if let Ok(key) = name.to_ascii_lowercase().parse() {
            builder = builder.with_config(key, value);
        }
    }
    builder = builder.with_bucket_name(&location.bucket);
    let profile = Profile::read(options);
    let unset = |builder: &AmazonS3Builder, key| builder.get_config_value(&key).is_none();
    if !has_credentials(&builder) {
        match profile.credentials(location)? {
            Some((key, secret, token)) => {
                builder = builder
                    .with_access_key_id(key)
                    .with_secret_access_key(secret);
                if let Some(token) = token {
                    builder = builder.with_token(token);
                }
            }
            None if may_ask_machine(&builder, options) => {}
            None => {
                return Err(DatasetError::NoCredentials {
                    url: location.display(),
                    provider: Provider::Aws,
                });
            }
        }
    }
    if unset(&builder, AmazonS3ConfigKey::Region)
        && let Some(region) = profile.get("region")
    {
        builder = builder.with_region(region);
    }
    if unset(&builder, AmazonS3ConfigKey::Endpoint)
        && let Some(endpoint) = profile.get("endpoint_url")
    {
        builder = builder.with_endpoint(endpoint);
    }
    // Whoever sets an http:// endpoint has allowed http.
    let endpoint = builder
        .get_config_value(&AmazonS3ConfigKey::S3Endpoint)
        .or_else(|| builder.get_config_value(&AmazonS3ConfigKey::Endpoint));
    if endpoint.is_some_and(|endpoint| endpoint.starts_with("http://")) {
        builder = builder.with_config(
            AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp),
            "true",
        );
    }
    Ok(builder)
}

/// Whether the environment names a way to get credentials.
fn has_credentials(builder: &AmazonS3Builder) -> bool {
    let set = |key| {
        builder
            .get_config_value(&key)
            .is_some_and(|value| !value.is_empty())
    };
    let skip = builder.get_config_value(&AmazonS3ConfigKey::SkipSignature);
    skip.is_some_and(|skip| {
        matches!(
            skip.to_ascii_lowercase().as_str(),
            "1" | "true" | "on" | "yes" | "y"
        )
    }) || set(AmazonS3ConfigKey::AccessKeyId)
        || set(AmazonS3ConfigKey::SecretAccessKey)
        || (set(AmazonS3ConfigKey::WebIdentityTokenFile) && set(AmazonS3ConfigKey::RoleArn))
        || set(AmazonS3ConfigKey::ContainerCredentialsRelativeUri)
        || (set(AmazonS3ConfigKey::ContainerCredentialsFullUri)
            && set(AmazonS3ConfigKey::ContainerAuthorizationTokenFile))
}

/// Whether the machine itself may have a role. An endpoint set by hand is not the cloud's own, so its role is of no use.
fn may_ask_machine(builder: &AmazonS3Builder, options: &StoreOptions) -> bool {
    if options.any(&["AWS_METADATA_ENDPOINT"]) {
        return true;
    }
    let disabled = options
        .get("AWS_EC2_METADATA_DISABLED")
        .is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let own_endpoint = builder
        .get_config_value(&AmazonS3ConfigKey::Endpoint)
        .is_some()
        || builder
            .get_config_value(&AmazonS3ConfigKey::S3Endpoint)
            .is_some();
    !disabled && !own_endpoint && super::metadata_service_answers()
}

/// The chosen profile of `~/.aws/credentials` and `~/.aws/config`.
#[derive(Debug, Default)]
struct Profile {
    values: HashMap<String, String>,
    /// Whether the user asked for a profile by name.
    asked: Option<String>,
    file: String,
}

/// Access key id, secret key, session token.
type KeyPair<'a> = (&'a str, &'a str, Option<&'a str>);

impl Profile {
    fn read(options: &StoreOptions) -> Self {
        let asked = options.get("AWS_PROFILE");
        let name = asked.clone().unwrap_or_else(|| "default".to_owned());
        let file = |variable: &str, usual: &str| {
            options
                .get(variable)
                .map(PathBuf::from)
                .or_else(|| Some(PathBuf::from(options.get("HOME")?).join(usual)))
        };
        let credentials = file("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials");
        let mut values = HashMap::new();
        for (path, section) in [
            (
                file("AWS_CONFIG_FILE", ".aws/config"),
                format!("profile {name}"),
            ),
            (file("AWS_CONFIG_FILE", ".aws/config"), name.clone()),
            (credentials.clone(), name.clone()),
        ] {
            // A file that is absent or unreadable says nothing; missing keys are reported by whoever needs them.
            if let Some(text) = path.and_then(|path| std::fs::read_to_string(path).ok()) {
                values.extend(section_of(&text, &section));
            }
        }
        let file = credentials.unwrap_or_default().display().to_string();
        Self {
            values,
            asked,
            file,
        }
    }

    fn get(&self, key: &str) -> Option<&String> {
        self.values.get(key)
    }

    /// Key, secret and session token, if the profile holds them.
    fn credentials(&self, location: &Location) -> Result<Option<KeyPair<'_>>, DatasetError> {
        let get = |key| self.get(key).map(String::as_str);
        let bad = |problem| {
            Err(DatasetError::BadCredentials {
                url: location.display(),
                file: self.file.clone(),
                problem,
            })
        };
        match (get("aws_access_key_id"), get("aws_secret_access_key")) {
            (Some(key), Some(secret)) => Ok(Some((key, secret, get("aws_session_token")))),
            (None, None) if self.asked.is_none() => Ok(None),
            (None, None) => bad(
                "the profile that AWS_PROFILE names holds no aws_access_key_id; single sign-on and assumed roles are \
                 not read: run `aws configure export-credentials --format env` and set what it prints",
            ),
            (None, Some(_)) => bad("the profile has no aws_access_key_id"),
            (Some(_), None) => bad("the profile has no aws_secret_access_key"),
        }
    }
}

/// The `key = value` lines of one `[section]`.
fn section_of(text: &str, section: &str) -> Vec<(String, String)> {
    let mut inside = false;
    let mut values = Vec::new();
    for line in text.lines() {
        // Indented lines belong to a nested value such as `s3 =`.
        if line.starts_with([' ', '\t', '#', ';']) {
            continue;
        }
        if let Some(name) = line
            .trim()
            .strip_prefix('[')
            .and_then(|line| line.strip_suffix(']'))
        {
            inside = name.trim() == section;
        } else if inside && let Some((key, value)) = line.split_once('=') {
            values.push((key.trim().to_owned(), value.trim().to_owned()));
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::section_of;

    #[test]
    fn reads_one_section_of_a_profile_file() {
        let text = "[default]\naws_access_key_id = A\n# no\n[profile x]\nregion=eu-west-1\ns3 =\n  max = 3\n[y]\nregion=z";
        assert_eq!(
            section_of(text, "default"),
            [("aws_access_key_id".to_owned(), "A".to_owned())]
        );
        assert_eq!(
            section_of(text, "profile x")[0],
            ("region".to_owned(), "eu-west-1".to_owned())
        );
        assert!(section_of(text, "absent").is_empty());
    }
}
