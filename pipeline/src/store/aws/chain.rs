//! Where S3's credentials come from, in the order of Amazon's own tools: environment, profile, web
//! identity, container, the machine's role. Nothing is fetched here.
use super::keys::{CredentialError, ENDPOINT_VARIABLES, Keys};
use super::profile::Profiles;
use crate::store::StoreOptions;

/// A way to get credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// They are set.
    Keys(Keys),
    /// What a program prints.
    Process {
        /// The profile that names it.
        profile: String,
        /// Its command line.
        command: String,
    },
    /// A role, assumed with other credentials.
    Role {
        /// Which.
        role: Role,
        /// Whose credentials may assume it.
        with: Box<Source>,
    },
    /// A role, assumed with a token of another identity provider.
    WebIdentity {
        /// Which.
        role: Role,
        /// The file with the token.
        token_file: String,
    },
    /// A role that a person has signed on for.
    SingleSignOn(SingleSignOn),
    /// What a service beside the container hands out.
    Container {
        /// Its address.
        url: String,
        /// The token that it asks for.
        token: ContainerToken,
    },
    /// What the machine's metadata service hands out.
    Machine {
        /// Its address.
        endpoint: String,
    },
}

/// A role to be assumed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Role {
    pub arn: String,
    pub session_name: String,
    pub external_id: Option<String>,
    pub duration_seconds: Option<String>,
    /// The security token service.
    pub endpoint: String,
    /// The region that requests to it are signed for.
    pub region: String,
}

/// What a profile says about single sign-on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SingleSignOn {
    pub profile: String,
    pub account_id: String,
    pub role_name: String,
    pub start_url: String,
    /// The service that gives credentials for the token.
    pub portal: String,
    /// The service that renews the token.
    pub oidc: String,
    /// The folder of the tokens that `aws sso login` has got.
    pub cache: std::path::PathBuf,
}

/// The token of a container's service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ContainerToken {
    None,
    Value(Secret),
    File(String),
}

/// A text that is not shown.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// The first way that the settings name; `None` if they name none.
pub(super) fn find(options: &StoreOptions) -> Result<Option<Source>, CredentialError> {
    if let Some(keys) = keys_of_environment(options)? {
        return Ok(Some(Source::Keys(keys)));
    }
    let profiles = Profiles::read(options);
    let (profile, asked) = Profiles::chosen(options);
    if asked {
        profiles.must_have(&profile, "AWS_PROFILE")?;
    }
    let reader = Reader {
        options,
        profiles: &profiles,
    };
    if let Some(source) = reader.of_profile(&profile, &mut Vec::new())? {
        return Ok(Some(source));
    }
    if asked {
        return Err(CredentialError::EmptyProfile { profile });
    }
    if let (Some(token_file), Some(arn)) = (
        options.get("AWS_WEB_IDENTITY_TOKEN_FILE"),
        options.get("AWS_ROLE_ARN"),
    ) {
        let name = options.get("AWS_ROLE_SESSION_NAME");
        let role = reader.role(&profile, arn, name, None);
        return Ok(Some(Source::WebIdentity { role, token_file }));
    }
    Ok(reader.of_container()?.or_else(|| reader.of_machine(false)))
}

fn keys_of_environment(options: &StoreOptions) -> Result<Option<Keys>, CredentialError> {
    const NAMES: [&str; 2] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
    let missing = |missing: &str| CredentialError::HalfKeys {
        place: "the environment".to_owned(),
        missing: missing.to_owned(),
    };
    match NAMES.map(|name| options.get(name)) {
        [None, None] => Ok(None),
        [Some(id), Some(secret)] => {
            let token = options
                .get("AWS_SESSION_TOKEN")
                .or_else(|| options.get("AWS_TOKEN"));
            Keys::new(&id, &secret, token.as_deref(), "the environment").map(Some)
        }
        [None, _] => Err(missing(NAMES[0])),
        [_, None] => Err(missing(NAMES[1])),
    }
}

struct Reader<'a> {
    options: &'a StoreOptions,
    profiles: &'a Profiles,
}

impl Reader<'_> {
    /// What the profile says; `None` if it says nothing of credentials. `seen` are the profiles
    /// that led here.
    fn of_profile(
        &self,
        profile: &str,
        seen: &mut Vec<String>,
    ) -> Result<Option<Source>, CredentialError> {
        let get = |key| self.profiles.get(profile, key).map(str::to_owned);
        let unsupported = |key| {
            Err(CredentialError::NeedsPerson {
                profile: profile.to_owned(),
                key,
            })
        };
        // A profile that names itself as the source means its own keys.
        if seen.last().is_some_and(|last| last == profile) {
            return self.keys(profile);
        }
        if seen.iter().any(|one| one == profile) {
            seen.push(profile.to_owned());
            return Err(CredentialError::RoleLoop {
                profiles: seen.clone(),
            });
        }
        if let Some(arn) = get("role_arn") {
            if get("mfa_serial").is_some() {
                return unsupported("mfa_serial");
            }
            let role = self.role(profile, arn, get("role_session_name"), Some(&get));
            if let Some(token_file) = get("web_identity_token_file") {
                return Ok(Some(Source::WebIdentity { role, token_file }));
            }
            seen.push(profile.to_owned());
            let with = self.source_of_role(profile, seen)?;
            return Ok(Some(Source::Role {
                role,
                with: Box::new(with),
            }));
        }
        if let Some(keys) = self.keys(profile)? {
            return Ok(Some(keys));
        }
        if let Some(command) = get("credential_process") {
            let profile = profile.to_owned();
            return Ok(Some(Source::Process { profile, command }));
        }
        if get("sso_session").is_some() || get("sso_start_url").is_some() {
            return self.single_sign_on(profile).map(Some);
        }
        if get("login_session").is_some() {
            return unsupported("login_session");
        }
        Ok(None)
    }

    fn keys(&self, profile: &str) -> Result<Option<Source>, CredentialError> {
        const NAMES: [&str; 2] = ["aws_access_key_id", "aws_secret_access_key"];
        let place = format!("the profile {profile:?}");
        let [id, secret] = NAMES.map(|key| self.profiles.get(profile, key));
        let missing = |missing: &str| CredentialError::HalfKeys {
            place: place.clone(),
            missing: missing.to_owned(),
        };
        match (id, secret) {
            (None, None) => Ok(None),
            (Some(id), Some(secret)) => {
                let token = self.profiles.get(profile, "aws_session_token");
                Keys::new(id, secret, token, &place).map(|keys| Some(Source::Keys(keys)))
            }
            (None, _) => Err(missing(NAMES[0])),
            (_, None) => Err(missing(NAMES[1])),
        }
    }

    /// Whose credentials may assume the profile's role.
    fn source_of_role(
        &self,
        profile: &str,
        seen: &mut Vec<String>,
    ) -> Result<Source, CredentialError> {
        let no_source = || CredentialError::RoleWithoutSource {
            profile: profile.to_owned(),
        };
        if let Some(source) = self.profiles.get(profile, "source_profile") {
            self.profiles
                .must_have(source, &format!("source_profile of {profile:?}"))?;
            let found = self.of_profile(source, seen)?;
            return found.ok_or_else(|| CredentialError::EmptyProfile {
                profile: source.to_owned(),
            });
        }
        let found = match self.profiles.get(profile, "credential_source") {
            Some("Environment") => keys_of_environment(self.options)?.map(Source::Keys),
            Some("EcsContainer") => self.of_container()?,
            Some("Ec2InstanceMetadata") => self.of_machine(true),
            _ => None,
        };
        found.ok_or_else(no_source)
    }

    fn role(
        &self,
        profile: &str,
        arn: String,
        session_name: Option<String>,
        get: Option<&dyn Fn(&'static str) -> Option<String>>,
    ) -> Role {
        let get = |key| get.and_then(|get| get(key));
        let region = self.region(profile);
        Role {
            arn,
            session_name: session_name.unwrap_or_else(|| "nepa".to_owned()),
            external_id: get("external_id"),
            duration_seconds: get("duration_seconds"),
            endpoint: self.endpoint(profile, "sts", "sts", &region),
            region,
        }
    }

    fn region(&self, profile: &str) -> String {
        let of_profile = || self.profiles.get(profile, "region").map(str::to_owned);
        let set = self
            .options
            .get("AWS_REGION")
            .or_else(|| self.options.get("AWS_DEFAULT_REGION"));
        set.or_else(of_profile)
            .unwrap_or_else(|| "us-east-1".to_owned())
    }

    /// The endpoint of one of Amazon's services, by the environment, the profile or its region.
    fn endpoint(&self, profile: &str, service: &str, host: &str, region: &str) -> String {
        let variable = format!("AWS_ENDPOINT_URL_{}", service.to_ascii_uppercase());
        let of_all = || self.options.get("AWS_ENDPOINT_URL");
        let of_profile = || self.profiles.endpoint(profile, service).map(str::to_owned);
        let named = self
            .options
            .get(&variable)
            .or_else(of_all)
            .or_else(of_profile);
        let domain = if region.starts_with("cn-") {
            "amazonaws.com.cn"
        } else {
            "amazonaws.com"
        };
        named.map_or_else(
            || format!("https://{host}.{region}.{domain}"),
            |endpoint| crate::store::endpoint::with_scheme(endpoint.trim_end_matches('/')),
        )
    }

    fn single_sign_on(&self, profile: &str) -> Result<Source, CredentialError> {
        let session = self.profiles.get(profile, "sso_session");
        let need = |key: &'static str| {
            let of_session = session.and_then(|name| self.profiles.sso_session(name, key));
            let value = of_session.or_else(|| self.profiles.get(profile, key));
            value
                .map(str::to_owned)
                .ok_or_else(|| CredentialError::HalfKeys {
                    place: format!("the profile {profile:?}"),
                    missing: key.to_owned(),
                })
        };
        let region = need("sso_region")?;
        let endpoint = |service, host| self.endpoint(profile, service, host, &region);
        let home = std::path::PathBuf::from(self.options.get("HOME").unwrap_or_default());
        Ok(Source::SingleSignOn(SingleSignOn {
            profile: profile.to_owned(),
            account_id: need("sso_account_id")?,
            role_name: need("sso_role_name")?,
            start_url: need("sso_start_url")?,
            portal: endpoint("sso", "portal.sso"),
            oidc: endpoint("sso_oidc", "oidc"),
            cache: home.join(".aws/sso/cache"),
        }))
    }

    fn of_container(&self) -> Result<Option<Source>, CredentialError> {
        let get = |name| self.options.get(name);
        let url = if let Some(path) = get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") {
            format!("http://169.254.170.2{path}")
        } else if let Some(url) = get("AWS_CONTAINER_CREDENTIALS_FULL_URI") {
            if !may_have_token(&url) {
                return Err(CredentialError::ContainerAddress {
                    url: crate::store::redact(&url),
                });
            }
            url
        } else {
            return Ok(None);
        };
        let token = match (
            get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"),
            get("AWS_CONTAINER_AUTHORIZATION_TOKEN"),
        ) {
            (Some(file), _) => ContainerToken::File(file),
            (None, Some(token)) => ContainerToken::Value(Secret(token)),
            (None, None) => ContainerToken::None,
        };
        Ok(Some(Source::Container { url, token }))
    }

    /// The machine's role, if `certain` or if there may be one. An endpoint set by hand is not the
    /// cloud's own, so the machine's role is of no use there.
    fn of_machine(&self, certain: bool) -> Option<Source> {
        let get = |name| self.options.get(name);
        if get("AWS_EC2_METADATA_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
        {
            return None;
        }
        let named =
            get("AWS_EC2_METADATA_SERVICE_ENDPOINT").or_else(|| get("AWS_METADATA_ENDPOINT"));
        let (profile, _) = Profiles::chosen(self.options);
        let own_endpoint = self.options.any(&ENDPOINT_VARIABLES)
            || self.profiles.endpoint(&profile, "s3").is_some();
        let there = certain
            || named.is_some()
            || (!own_endpoint && crate::store::endpoint::metadata_service_answers());
        let endpoint = named.unwrap_or_else(|| "http://169.254.169.254".to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        there.then_some(Source::Machine { endpoint })
    }
}

/// Whether a container's service at this URL may be shown a token: it is encrypted, or on this
/// machine.
fn may_have_token(url: &str) -> bool {
    let Ok(url) = ::url::Url::parse(url) else {
        return false;
    };
    let near = [
        "169.254.170.2",
        "169.254.170.23",
        "[fd00:ec2::23]",
        "localhost",
    ];
    let host = url.host_str().unwrap_or_default();
    let loopback = match url.host() {
        Some(::url::Host::Ipv4(address)) => address.is_loopback(),
        Some(::url::Host::Ipv6(address)) => address.is_loopback(),
        _ => false,
    };
    url.scheme() == "https" || (url.scheme() == "http" && (loopback || near.contains(&host)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found with these files and variables; nothing of the caller's environment counts.
    fn found(config: &str, variables: &[(&str, &str)]) -> Result<Option<Source>, CredentialError> {
        let file = std::env::temp_dir().join(format!(
            "nepa-chain-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        std::fs::write(&file, config).unwrap();
        let path = file.to_str().unwrap().to_owned();
        let mut options = vec![
            ("AWS_CONFIG_FILE", path.as_str()),
            ("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent"),
            ("HOME", "/nonexistent"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ];
        for name in [
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "AWS_TOKEN",
            "AWS_PROFILE",
            "AWS_DEFAULT_PROFILE",
            "AWS_REGION",
            "AWS_DEFAULT_REGION",
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_ROLE_ARN",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            "AWS_ENDPOINT_URL",
        ] {
            options.push((name, ""));
        }
        options.extend(variables);
        let found = find(&StoreOptions::new(options));
        std::fs::remove_file(&file).unwrap();
        found
    }

    #[test]
    fn the_first_that_is_named() {
        let config = "[profile a]\nrole_arn = arn:a\nsource_profile = b\nregion = eu-west-1\nexternal_id = e\n\
                      [profile b]\ncredential_process = print-keys --it\n\
                      [profile s]\nsso_session = corp\nsso_account_id = 1\nsso_role_name = r\n\
                      [sso-session corp]\nsso_region = us-west-2\nsso_start_url = https://corp\n";
        assert_eq!(found("", &[]).unwrap(), None);
        let keys = found(
            config,
            &[
                ("AWS_ACCESS_KEY_ID", "id\n"),
                ("AWS_SECRET_ACCESS_KEY", "s"),
                ("AWS_PROFILE", "a"),
            ],
        );
        let Some(Source::Keys(keys)) = keys.unwrap() else {
            panic!()
        };
        assert_eq!(keys.0.key_id, "id");
        let Some(Source::Role { role, with }) = found(config, &[("AWS_PROFILE", "a")]).unwrap()
        else {
            panic!()
        };
        assert_eq!(
            (role.endpoint.as_str(), role.external_id.as_deref()),
            ("https://sts.eu-west-1.amazonaws.com", Some("e"))
        );
        assert_eq!(
            *with,
            Source::Process {
                profile: "b".to_owned(),
                command: "print-keys --it".to_owned()
            }
        );
        let Some(Source::SingleSignOn(sso)) = found(config, &[("AWS_PROFILE", "s")]).unwrap()
        else {
            panic!()
        };
        assert_eq!(
            (sso.portal.as_str(), sso.start_url.as_str()),
            ("https://portal.sso.us-west-2.amazonaws.com", "https://corp")
        );
        let web = [
            ("AWS_WEB_IDENTITY_TOKEN_FILE", "/t"),
            ("AWS_ROLE_ARN", "arn:w"),
            ("AWS_ENDPOINT_URL", "127.0.0.1:9000"),
        ];
        let Some(Source::WebIdentity { role, .. }) = found("", &web).unwrap() else {
            panic!()
        };
        assert_eq!(role.endpoint, "http://127.0.0.1:9000");
        let container = |url| found("", &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", url)]);
        assert!(matches!(
            container("http://127.0.0.1:1/x"),
            Ok(Some(Source::Container { .. }))
        ));
        assert!(matches!(
            container("http://far/x"),
            Err(CredentialError::ContainerAddress { .. })
        ));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let config = "[profile a]\nrole_arn = x\nsource_profile = b\n[profile b]\nrole_arn = y\nsource_profile = a\n\
                      [profile c]\nrole_arn = x\n[profile d]\nrole_arn = x\nsource_profile = none\n[profile e]\nregion = z\n\
                      [profile f]\nrole_arn = x\nsource_profile = e\nmfa_serial = m\n[profile g]\naws_access_key_id = k\n\
                      [profile h]\nsso_start_url = u\n";
        for (profile, parts) in [
            ("a", &["a", "b", "circle"][..]),
            ("c", &["\"c\"", "source_profile"]),
            ("d", &["\"none\"", "source_profile of \"d\"", "a, b, c"]),
            ("e", &["\"e\"", "no credentials"]),
            ("f", &["mfa_serial", "export-credentials"]),
            ("g", &["aws_secret_access_key", "\"g\""]),
            ("h", &["sso_region", "\"h\""]),
            ("typo", &["\"typo\"", "AWS_PROFILE", "a, b, c"]),
        ] {
            let error = found(config, &[("AWS_PROFILE", profile)])
                .unwrap_err()
                .to_string();
            for part in parts {
                assert!(error.contains(part), "{profile}: {part} is not in {error}");
            }
        }
    }
}
