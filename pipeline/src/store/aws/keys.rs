//! Keys of S3, and why there are none.
use std::sync::Arc;

use chrono::{DateTime, Utc};
use object_store::aws::AwsCredential;

use crate::store::{StoreCause, secrets};

/// The variables that name the store's address, the most particular first.
pub(super) const ENDPOINT_VARIABLES: [&str; 3] =
    ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"];

/// An access key, its secret and the token that may belong to them. Nothing of it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Keys(pub(super) Arc<AwsCredential>);

impl Keys {
    /// Of what stands at `place`, without the line's end that a file may have left behind.
    pub(super) fn new(
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

/// Credentials with the time for which they hold.
#[derive(Debug, Clone)]
pub(super) struct Lent {
    pub credential: Arc<AwsCredential>,
    /// `None` if nobody says.
    pub expires: Option<DateTime<Utc>>,
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
