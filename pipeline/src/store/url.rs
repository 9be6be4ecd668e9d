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
    /// Where in the key the part lies in which a glob begins. A local path that exists is none.
    glob: Option<usize>,
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
        if key.starts_with('/') {
            return Err(bad(
                "keys that begin with `/` cannot be read or written; leave the second `/` behind the bucket out, or copy \
                 the objects to other keys",
            ));
        }
        Ok(Self {
            provider,
            bucket: bucket.to_owned(),
            base_url: String::new(),
            root: format!("{scheme}://{bucket}"),
            glob: key.find(is_glob_char).map(|at| part_start(key, at)),
            key: key.to_owned(),
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
            glob: None,
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
        let path = with_home(path).ok_or_else(|| bad("HOME is not set, so `~` means nothing"))?;
        let absolute =
            std::path::absolute(path).map_err(|_| bad("the current folder is not known"))?;
        let absolute = absolute
            .to_str()
            .ok_or_else(|| bad("the path is not UTF-8"))?;
        let resolved = without_parents(absolute).map_err(bad)?;
        let key = resolved.trim_start_matches('/').to_owned();
        Ok(Self {
            provider: Provider::Local,
            bucket: String::new(),
            base_url: String::new(),
            root: String::new(),
            glob: local_glob(&key),
            key,
        })
    }

    /// Whether the key is a glob.
    pub fn is_glob(&self) -> bool {
        self.glob.is_some()
    }

    /// The key up to the folder in which the glob begins, without a `/` at its end.
    pub fn glob_folder(&self) -> &str {
        let start = self.glob.unwrap_or(self.key.len());
        self.key[..start].trim_end_matches('/')
    }

    /// The glob, relative to its folder.
    pub(crate) fn glob_pattern(&self) -> &str {
        &self.key[self.glob.unwrap_or(self.key.len())..]
    }

    /// The same where brackets and braces are part of names, if a store's key holds any before the
    /// part with the first `*` or `?`. For local paths the file system said it already.
    pub(crate) fn with_plain_brackets(&self) -> Option<Self> {
        let glob = self.key.find(['*', '?']);
        let glob = glob.map(|at| part_start(&self.key, at));
        let folder = &self.key[..glob.unwrap_or(self.key.len())];
        let is_other = self.provider != Provider::Local && folder.contains(['[', '{']);
        is_other.then(|| Self {
            glob,
            ..self.clone()
        })
    }

    /// The key as the store's path.
    pub fn store_path(&self) -> Result<Path, DatasetError> {
        self.path_of(&self.key)
    }

    /// Another key of the same bucket as the store's path.
    pub(crate) fn path_of(&self, key: &str) -> Result<Path, DatasetError> {
        Path::parse(key.trim_end_matches('/')).map_err(|_| DatasetError::BadUrl {
            url: self.display_key(key),
            problem: "`//`, `.` and `..` as parts and control characters cannot stand in a path here; copy such objects \
                      to other keys",
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

/// Where the part of `key` begins that holds the byte at `at`.
fn part_start(key: &str, at: usize) -> usize {
    key[..at].rfind('/').map_or(0, |slash| slash + 1)
}

/// A path with its first `~` replaced by the home folder, which must be known then.
fn with_home(path: &str) -> Option<std::path::PathBuf> {
    let rest = match path.strip_prefix('~') {
        Some("") => "",
        Some(rest) if rest.starts_with('/') => &rest[1..],
        _ => return Some(path.into()),
    };
    let home = std::env::home_dir().filter(|home| !home.as_os_str().is_empty())?;
    Some(home.join(rest))
}

/// An absolute path without `..`, which no store's path can hold. As far as it exists, the file
/// system says what they mean, as links lead elsewhere.
fn without_parents(absolute: &str) -> Result<String, &'static str> {
    let parts = absolute.split('/').collect::<Vec<_>>();
    let Some(last) = parts.iter().rposition(|part| *part == "..") else {
        return Ok(absolute.to_owned());
    };
    let (head, rest) = (parts[..=last].join("/"), parts[last + 1..].join("/"));
    let head = match std::fs::canonicalize(&head) {
        Ok(real) => real.to_str().ok_or("the path is not UTF-8")?.to_owned(),
        Err(_) if head.contains(is_glob_char) => {
            return Err("`..` cannot stand behind a glob");
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut kept = Vec::new();
            for part in head.split('/').filter(|part| !part.is_empty()) {
                if part == ".." {
                    kept.pop();
                } else {
                    kept.push(part);
                }
            }
            format!("/{}", kept.join("/"))
        }
        Err(_) => return Err("the path cannot be resolved"),
    };
    Ok(format!("{}/{rest}", head.trim_end_matches('/')))
}

/// Where a local key's first part begins that holds glob characters and does not exist as it stands.
fn local_glob(key: &str) -> Option<usize> {
    let mut start = 0;
    for part in key.split_inclusive('/') {
        let end = start + part.len();
        let exists = || std::path::Path::new("/").join(&key[..end]).exists();
        if part.contains(is_glob_char) && !exists() {
            return Some(start);
        }
        start = end;
    }
    None
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
            ("s3://b//key", "begin with `/`"),
        ] {
            let error = Location::parse(url).unwrap_err().to_string();
            assert!(error.contains(part), "{url}: {error}");
        }
    }

    #[test]
    fn a_local_path_that_exists_is_no_glob() {
        let folder = std::env::temp_dir().join(format!("nepa-url-[{}]", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let folder = folder.to_str().unwrap();
        assert!(!Location::parse(folder).unwrap().is_glob());
        let inside = Location::parse(&format!("{folder}/train-[01].parquet")).unwrap();
        assert_eq!(format!("/{}", inside.glob_folder()), folder);
        assert_eq!(inside.glob_pattern(), "train-[01].parquet");
        std::fs::remove_dir(folder).unwrap();
    }

    #[test]
    fn parents_and_home_stand_before_a_glob() {
        let here = std::env::current_dir().unwrap();
        let parent = here.parent().unwrap().to_str().unwrap();
        for url in [
            "../a/./train-*.parquet",
            "./../a//train-*.parquet",
            "b/../../a/train-*.parquet",
        ] {
            let found = Location::parse(url).unwrap();
            assert_eq!(
                found.display(),
                format!("{parent}/a/train-*.parquet"),
                "{url}"
            );
            assert_eq!(found.glob_pattern(), "train-*.parquet");
        }
        assert_eq!(
            Location::parse("..")
                .unwrap()
                .display()
                .trim_end_matches('/'),
            parent
        );
        let home = std::env::home_dir().unwrap();
        let found = Location::parse("~/x/*.parquet").unwrap();
        assert_eq!(found.display(), home.join("x/*.parquet").to_str().unwrap());
        assert_eq!(
            Location::parse("~x").unwrap().display(),
            here.join("~x").to_str().unwrap()
        );
        let error = Location::parse("a-*/../b.parquet").unwrap_err().to_string();
        assert!(error.contains("behind a glob"), "{error}");
    }

    #[test]
    fn brackets_of_a_key_can_be_part_of_its_name() {
        let folder = |url: &str| {
            let plain = Location::parse(url).unwrap().with_plain_brackets()?;
            Some((plain.glob_folder().to_owned(), plain.is_glob()))
        };
        for (url, expected) in [
            (
                "s3://b/a[1]/x{y}.parquet",
                Some(("a[1]/x{y}.parquet", false)),
            ),
            ("s3://b/a[1]/x[2]*.parquet", Some(("a[1]", true))),
            ("s3://b/a/x[2]*.parquet", None),
            ("s3://b/a/x*.parquet", None),
        ] {
            let expected = expected.map(|(key, is_glob)| (key.to_owned(), is_glob));
            assert_eq!(folder(url), expected, "{url}");
        }
    }
}
