//! S3's settings: environment variables first, then the profile in `~/.aws`; credentials by Amazon's whole chain, renewed
//! before they expire and when the store says that they have.
mod chain;
mod lender;
mod profile;
mod service;

use std::sync::Arc;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, AwsCredential};

pub(super) use lender::Lender;
use profile::Profiles;

use super::{Location, Provider, StoreOptions, endpoint, secrets};
use crate::StoreError;
use crate::store::StoreCause;

/// The variables that name the store's address, the most particular first.
const ENDPOINT_VARIABLES: [&str; 3] = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"];

/// A builder with credentials, region and endpoint set, and who lends the credentials if requests are signed.
pub(super) fn builder(
    location: &Location,
    options: &StoreOptions,
) -> Result<(AmazonS3Builder, Option<Arc<Lender>>), StoreError> {
    let mut builder = AmazonS3Builder::new();
    for (name, value) in options.with_prefix("AWS_") {
        if let Ok(key) = name.to_ascii_lowercase().parse() {
            builder = builder.with_config(key, value);
        }
    }
    builder = builder.with_bucket_name(&location.bucket);
    let lender = if is_on(&builder, AmazonS3ConfigKey::SkipSignature) {
        None
    } else {
        let lender = Lender::of(options).map_err(|source| StoreError::Credentials {
            url: location.display(),
            source,
        })?;
        let lender = lender.ok_or_else(|| StoreError::NoCredentials {
            url: location.display(),
            provider: Provider::Aws,
        })?;
        builder = builder.with_credentials(Arc::clone(&lender) as _);
        Some(lender)
    };
    let profiles = Profiles::read(options);
    let (profile, _) = Profiles::chosen(options);
    if builder
        .get_config_value(&AmazonS3ConfigKey::Region)
        .is_none()
        && let Some(region) = profiles.get(&profile, "region")
    {
        builder = builder.with_region(region);
    }
    let mut own = super::own_endpoint(&ENDPOINT_VARIABLES, location, options)?;
    if own.is_none()
        && let Some(value) = profiles.endpoint(&profile, "s3")
    {
        own = Some(endpoint::parse(
            value,
            "endpoint_url (~/.aws/config)",
            location,
        )?);
    }
    if is_on(&builder, AmazonS3ConfigKey::VirtualHostedStyleRequest) {
        own = own
            .map(|own| endpoint::with_bucket(own, location))
            .transpose()?;
    }
    if let Some((key, value)) = super::allow_http(own.as_ref()) {
        builder = builder.with_config(AmazonS3ConfigKey::Client(key), value);
    }
    if let Some(own) = own {
        builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, super::trimmed(&own));
    }
    Ok((builder, lender))
}

/// Whether a switch is on, in any of the words that the store takes for it.
fn is_on(builder: &AmazonS3Builder, key: AmazonS3ConfigKey) -> bool {
    const WORDS: [&str; 5] = ["1", "true", "on", "yes", "y"];
    builder
        .get_config_value(&key)
        .is_some_and(|value| WORDS.contains(&value.to_ascii_lowercase().as_str()))
}

/// An access key, its secret and the token that may belong to them. Nothing of it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Keys(Arc<AwsCredential>);

impl Keys {
    /// Of what stands at `place`, without the line's end that a file may have left behind.
    fn new(
        id: &str,
        secret: &str,
        token: Option<&str>,
        place: &str,
    ) -> Result<Self, CredentialError> {
        let token = token.map(str::trim).filter(|token| !token.is_empty());
        let [id, secret] = [id, secret].map(str::trim);
        for text in [secret, token.unwrap_or_default()] {
            secrets::remember(text);
        }
        // They go into headers.
        let visible = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if !visible(id) || !visible(secret) || !token.is_none_or(visible) {
            return Err(CredentialError::BadCharacters {
                place: place.to_owned(),
            });
        }
        Ok(Self(Arc::new(AwsCredential {
            key_id: id.to_owned(),
            secret_key: secret.to_owned(),
            token: token.map(str::to_owned),
        })))
    }
}

/// Credentials for S3 cannot be got from where the settings say.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CredentialError {
    /// A profile that is not there.
    #[error(
        "{by} names the profile {profile:?}, which is not in {}; {}", files.join(" or "),
        if known.is_empty() { "there is none at all".to_owned() } else { format!("there are: {}", known.join(", ")) }
    )]
    NoProfile {
        /// Its name.
        profile: String,
        /// Who names it.
        by: String,
        /// The files that were read.
        files: Vec<String>,
        /// The profiles that there are.
        known: Vec<String>,
    },
    /// A profile without credentials.
    #[error(
        "the profile {profile:?} holds no credentials: it needs aws_access_key_id and aws_secret_access_key, role_arn, \
         credential_process or sso_session"
    )]
    EmptyProfile {
        /// Its name.
        profile: String,
    },
    /// One of two settings that go together.
    #[error("{place} has no {missing}, which belongs to what else is set there")]
    HalfKeys {
        /// Where.
        place: String,
        /// The name of what is missing.
        missing: String,
    },
    /// Keys that cannot be sent.
    #[error(
        "the access key, its secret or the token in {place} holds spaces or characters that no key has; copy it again"
    )]
    BadCharacters {
        /// Where.
        place: String,
    },
    /// Profiles that name each other as the source of their role.
    #[error("the profiles {} name each other in a circle as source_profile", profiles.join(", "))]
    RoleLoop {
        /// In the order in which they do.
        profiles: Vec<String>,
    },
    /// A role that nobody assumes.
    #[error(
        "the profile {profile:?} has role_arn and neither source_profile nor a credential_source (Environment, EcsContainer, \
         Ec2InstanceMetadata) that has credentials"
    )]
    RoleWithoutSource {
        /// Its name.
        profile: String,
    },
    /// What only a person can do.
    #[error(
        "the profile {profile:?} has {key}, which needs a person: run `aws configure export-credentials --profile {profile} \
         --format env` and set what it prints, or set credential_process to `aws configure export-credentials --profile \
         {profile}` in a profile of its own"
    )]
    NeedsPerson {
        /// Its name.
        profile: String,
        /// The key that asks for a person.
        key: &'static str,
    },
    /// Nobody has signed on, or it was too long ago.
    #[error(
        "the single sign-on of the profile {profile:?} is absent or has expired; run `aws sso login --profile {profile}`"
    )]
    NotSignedOn {
        /// Its name.
        profile: String,
    },
    /// A service that is far away and not encrypted.
    #[error(
        "AWS_CONTAINER_CREDENTIALS_FULL_URI = {url} is neither https:// nor an address of this machine, so it gets no token"
    )]
    ContainerAddress {
        /// The address, without secrets.
        url: String,
    },
    /// A file with a token that cannot be read.
    #[error("cannot read the token in {file}")]
    TokenFile {
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: StoreCause,
    },
    /// The program of a profile failed.
    #[error(
        "credential_process of the profile {profile:?} failed ({status}){}",
        said(stderr)
    )]
    Process {
        /// Its name.
        profile: String,
        /// How it ended.
        status: String,
        /// The end of what it said on its standard error, without secrets.
        stderr: String,
    },
    /// The program of a profile printed something else.
    #[error(
        "credential_process of the profile {profile:?} printed no JSON with \"Version\": 1, AccessKeyId and SecretAccessKey"
    )]
    ProcessOutput {
        /// Its name.
        profile: String,
    },
    /// The service that hands out credentials does not answer.
    #[error("{service} cannot be reached")]
    NoAnswer {
        /// Which, with its address.
        service: String,
        /// What the network says.
        #[source]
        source: StoreCause,
    },
    /// It refuses.
    #[error("{service} refuses (status {status}){}", said(reason))]
    Refused {
        /// Which, with its address.
        service: String,
        /// HTTP status.
        status: u16,
        /// Its code and message, without secrets.
        reason: String,
    },
    /// It answers something else.
    #[error("{service} answers without an access key and its secret")]
    BadAnswer {
        /// Which, with its address.
        service: String,
    },
}

fn said(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!(": {text}")
    }
}
