//! Whose store it is.

/// Whose store it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Provider {
    /// The file system.
    Local,
    /// S3 and whatever speaks its protocol.
    Aws,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage.
    Azure,
    /// Any web server with range requests.
    Http,
}

impl Provider {
    /// The environment variable that sets the endpoint.
    pub fn endpoint_variable(self) -> &'static str {
        match self {
            Self::Aws => "AWS_ENDPOINT_URL",
            Self::Google => "GOOGLE_BASE_URL",
            Self::Azure => "AZURE_STORAGE_ENDPOINT",
            Self::Local | Self::Http => "the URL itself",
        }
    }

    /// What to do where there are no credentials.
    pub(crate) fn no_credentials(self) -> &'static str {
        match self {
            Self::Aws => {
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE for a profile of ~/.aws/credentials; \
                 for a public bucket set AWS_SKIP_SIGNATURE=true"
            }
            Self::Google => {
                "set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`; for a public \
                 bucket set GOOGLE_SKIP_SIGNATURE=true"
            }
            Self::Azure => {
                "set AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN; for a \
                 public container set AZURE_SKIP_SIGNATURE=true"
            }
            Self::Local | Self::Http => "none are needed",
        }
    }
}
