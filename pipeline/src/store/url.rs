//! What a URL says: which store, which bucket, which key or glob. Parsing only; nothing is opened here.
use object_store::path::Path;

use crate::DatasetError;

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

/// A URL taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// Whose store.
    pub provider: Provider,
    /// Bucket or container; empty for local files and web servers.
    pub bucket: String,
    /// What the web store is opened with: scheme, host and, as it may be signed, the query. Never shown.
    pub(crate) base_url: String,
    /// `s3://bucket`, `https://host` or empty for local files: what stands before the key when shown.
    root: String,
    /// Key in the bucket or absolute path without its first `/`; may hold a glob.
    pub key: String,
    /// Whether a glob may be meant; a local path that exists is taken as it is.
    literal: bool,
}

impl Location {
    /// The store as people know it: `s3://bucket`, `https://host`.
    pub(crate) fn store_name(&self) -> String {
        match self.provider {
            Provider::Local => "the file system".to_owned(),
            _ => self.root.clone(),
        }
    }

    /// Takes `url` apart.
    pub fn parse(url: &str) -> Result<Self, DatasetError> {
        let Some((scheme, rest)) = url.split_once("://") else {
            return Self::local(url, url);
        };
        match scheme {
            "file" => Self::file(url),
            "s3" | "s3a" => Self::bucket(Provider::Aws, "s3", rest),
            "gs" | "gcs" => Self::bucket(Provider::Google, "gs", rest),
            "az" | "azure" => Self::bucket(Provider::Azure, "az", rest),
            "http" | "https" => Self::web(url),
            _ => Err(DatasetError::UnknownScheme {
                url: super::redact(url),
                scheme: scheme.to_owned(),
            }),
        }
    }

    fn bucket(provider: Provider, scheme: &str, rest: &str) -> Result<Self, DatasetError> {
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        let bad = |problem| {
            let shown = bucket.rsplit('@').next().unwrap_or_default();
            DatasetError::BadUrl {
                url: format!("{scheme}://{shown}/{key}"),
                problem,
            }
        };
        if bucket.contains('@') {
            return Err(bad(
                "credentials do not belong into a URL; set the cloud's environment variables",
            ));
        }
        if bucket.is_empty() {
            return Err(bad("it names no bucket; write it as s3://bucket/prefix"));
        }
        if bucket.contains(is_glob_char) {
            return Err(bad("a glob cannot stand in the bucket's name"));
        }
        Ok(Self {
            provider,
            bucket: bucket.to_owned(),
            base_url: String::new(),
            root: format!("{scheme}://{bucket}"),
            key: key.trim_start_matches('/').to_owned(),
            literal: false,
        })
    }

    fn web(url: &str) -> Result<Self, DatasetError> {
        let bad = |problem| DatasetError::BadUrl {
            url: super::redact(url),
            problem,
        };
        let parsed = ::url::Url::parse(url).map_err(|_| bad("it is not a valid URL"))?;
        let path = Path::from_url_path(parsed.path()).map_err(|_| bad("its path is not valid"))?;
        if path.is_root() {
            return Err(bad(
                "it names no object; web servers cannot be listed, so name each Parquet file",
            ));
        }
        let mut base = parsed.clone();
        base.set_path("");
        base.set_fragment(None);
        let mut shown = base.clone();
        shown.set_query(None);
        // Both fail only for URLs without a host, which http does not have.
        let _ = shown.set_username("");
        let _ = shown.set_password(None);
        Ok(Self {
            provider: Provider::Http,
            bucket: String::new(),
            base_url: base.to_string(),
            root: shown.as_str().trim_end_matches('/').to_owned(),
            key: path.to_string(),
            literal: true,
        })
    }

    fn file(url: &str) -> Result<Self, DatasetError> {
        let bad = || DatasetError::BadUrl {
            url: url.to_owned(),
            problem: "write it as file:///absolute/path",
        };
        // In a file URL these are part of a name or of a glob, never a query or a fragment.
        let escaped = url.replace('?', "%3F").replace('#', "%23");
        let path = ::url::Url::parse(&escaped)
            .ok()
            .and_then(|url| url.to_file_path().ok())
            .ok_or_else(bad)?;
        Self::local(path.to_str().ok_or_else(bad)?, url)
    }

    fn local(path: &str, url: &str) -> Result<Self, DatasetError> {
        let bad = |problem| DatasetError::BadUrl {
            url: url.to_owned(),
            problem,
        };
        if path.is_empty() {
            return Err(bad("it is empty"));
        }
        let absolute =
            std::path::absolute(path).map_err(|_| bad("the current folder is not known"))?;
        let literal = absolute.exists();
        let absolute = absolute
            .to_str()
            .ok_or_else(|| bad("the path is not UTF-8"))?;
        // `..` cannot be part of a store's path; the file system resolves it.
        let resolved = if literal && absolute.split('/').any(|part| part == "..") {
            let real =
                std::fs::canonicalize(absolute).map_err(|_| bad("the path cannot be resolved"))?;
            real.to_str()
                .ok_or_else(|| bad("the path is not UTF-8"))?
                .to_owned()
        } else {
            absolute.to_owned()
        };
        Ok(Self {
            provider: Provider::Local,
            bucket: String::new(),
            base_url: String::new(),
            root: String::new(),
            key: resolved.trim_start_matches('/').to_owned(),
            literal,
        })
    }

    /// Whether the key is a glob.
    pub fn is_glob(&self) -> bool {
        !self.literal && self.key.contains(is_glob_char)
    }

    /// The key up to the folder in which the glob begins, without a `/` at its end.
    pub fn glob_folder(&self) -> &str {
        let start = self.key.find(is_glob_char).unwrap_or(self.key.len());
        self.key[..start]
            .rfind('/')
            .map_or("", |slash| &self.key[..slash])
    }

    /// The key as the store's path.
    pub fn store_path(&self) -> Result<Path, DatasetError> {
        self.path_of(&self.key)
    }

    /// Another key of the same bucket as the store's path.
    pub(crate) fn path_of(&self, key: &str) -> Result<Path, DatasetError> {
        Path::parse(key.trim_end_matches('/')).map_err(|_| DatasetError::BadUrl {
            url: self.display_key(key),
            problem: "its path holds empty parts, `.` or `..`",
        })
    }

    /// The URL for people, without secrets.
    pub fn display(&self) -> String {
        self.display_key(&self.key)
    }

    /// The URL of another key in the same bucket, for people.
    pub fn display_key(&self, key: &str) -> String {
        format!("{}/{key}", self.root)
    }

    /// What two URLs share if one store serves both.
    pub(crate) fn store_key(&self) -> (Provider, String) {
        (
            self.provider,
            if self.provider == Provider::Http {
                self.base_url.clone()
            } else {
                self.bucket.clone()
            },
        )
    }
}

fn is_glob_char(c: char) -> bool {
    matches!(c, '*' | '?' | '[' | '{')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_urls_apart() {
        let s3 = Location::parse("s3://bucket/in1k/train-*.parquet").unwrap();
        assert_eq!((s3.provider, s3.bucket.as_str()), (Provider::Aws, "bucket"));
        assert!(s3.is_glob());
        assert_eq!(s3.glob_folder(), "in1k");
        assert_eq!(s3.display(), "s3://bucket/in1k/train-*.parquet");
        assert_eq!(Location::parse("s3a://b/x?y/z").unwrap().glob_folder(), "");
        assert!(!Location::parse("gs://b").unwrap().is_glob());
        let file = Location::parse("file:///data/a%20b/{train,val}-?.parquet").unwrap();
        assert_eq!(file.display(), "/data/a b/{train,val}-?.parquet");
        assert_eq!(file.glob_folder(), "data/a b");
    }

    #[test]
    fn shows_no_secret() {
        let web =
            Location::parse("https://me:hunter2@host:8443/a/b.parquet?X-Amz-Signature=hunter2")
                .unwrap();
        assert_eq!(web.display(), "https://host:8443/a/b.parquet");
        let error = Location::parse("s3://key:hunter2@bucket/a")
            .unwrap_err()
            .to_string();
        assert!(
            !error.contains("hunter2") && error.contains("s3://bucket/a"),
            "{error}"
        );
        let error = Location::parse("ftp://me:hunter2@host/a")
            .unwrap_err()
            .to_string();
        assert!(
            !error.contains("hunter2") && error.contains("ftp://"),
            "{error}"
        );
    }

    #[test]
    fn says_what_is_wrong_with_a_url() {
        for (url, part) in [
            ("s3:///key", "names no bucket"),
            ("s3://b*/key", "bucket's name"),
            ("http://host/", "cannot be listed"),
            ("", "empty"),
            ("file://relative", "file:///absolute"),
        ] {
            let error = Location::parse(url).unwrap_err().to_string();
            assert!(error.contains(part), "{url}: {error}");
        }
    }

    #[test]
    fn a_local_path_that_exists_is_no_glob() {
        let folder = std::env::temp_dir().join(format!("nepa-url-[{}]", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        assert!(!Location::parse(folder.to_str().unwrap()).unwrap().is_glob());
        std::fs::remove_dir(&folder).unwrap();
    }
}
