//! What a URL says: which store, which bucket, which key or glob. Parsing only; nothing is opened
//! here.
use object_store::path::Path;
use sha2::{Digest, Sha256};

use super::secrets::{self, DIGEST_LENGTH, DIGEST_MARK, REMOVED, REMOVED_NAME, was_removed};
use super::{Provider, StoreError};

/// A URL taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// Whose store.
    pub provider: Provider,
    /// Bucket or container; empty for local files and web servers.
    pub bucket: String,
    /// What the web store is opened with: scheme, host and, as it may be signed, the query. Never
    /// shown.
    pub(crate) base_url: String,
    /// User name and password of a web URL, encoded for its `Authorization` header. Never shown.
    pub(crate) basic_auth: Option<String>,
    /// `s3://bucket`, `https://host` or empty for local files: what stands before the key when
    /// shown.
    root: String,
    /// What of a web URL's query says which object it is, with its `?`; empty if nothing does. No
    /// secrets.
    query: String,
    /// Whether the URL holds secrets: a signature, a user name, anything in the query that nobody
    /// knows.
    secret: bool,
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
    pub fn parse(url: &str) -> Result<Self, StoreError> {
        let Some((scheme, rest)) = url.split_once("://") else {
            return Self::local(url, url);
        };
        match scheme {
            "file" => Self::file(url),
            "s3" | "s3a" => Self::bucket(Provider::Aws, "s3", rest),
            "gs" | "gcs" => Self::bucket(Provider::Google, "gs", rest),
            "az" | "azure" => Self::bucket(Provider::Azure, "az", rest),
            "http" | "https" => Self::web(url),
            _ => Err(StoreError::UnknownScheme {
                url: super::redact(url),
                scheme: scheme.to_owned(),
            }),
        }
    }

    fn bucket(provider: Provider, scheme: &str, rest: &str) -> Result<Self, StoreError> {
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        let bad = |problem| {
            let shown = bucket.rsplit('@').next().unwrap_or_default();
            StoreError::BadUrl {
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
            basic_auth: None,
            root: format!("{scheme}://{bucket}"),
            query: String::new(),
            secret: false,
            glob: key.find(is_glob_char).map(|at| part_start(key, at)),
            key: key.to_owned(),
        })
    }

    fn web(url: &str) -> Result<Self, StoreError> {
        let bad = |problem| StoreError::BadUrl {
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
        let (query, secret_query) = query_for_people(&parsed);
        if parsed
            .query_pairs()
            .any(|(name, value)| was_removed(&name, &value))
        {
            return Err(StoreError::RedactedUrl {
                url: url.to_owned(),
            });
        }
        let (user, password) = (parsed.username(), parsed.password().unwrap_or_default());
        let has_user = !(user.is_empty() && password.is_empty());
        let basic_auth = has_user.then(|| {
            let header = secrets::basic_auth(user, password);
            for text in [user, password, &header] {
                secrets::remember(text);
            }
            header
        });
        let mut base = parsed.clone();
        base.set_path("");
        base.set_fragment(None);
        // Both fail only for URLs without a host, which http does not have.
        let _ = base.set_username("");
        let _ = base.set_password(None);
        let mut root = base.clone();
        root.set_query(None);
        Ok(Self {
            provider: Provider::Http,
            bucket: String::new(),
            base_url: base.to_string(),
            secret: secret_query || basic_auth.is_some(),
            basic_auth,
            root: root.as_str().trim_end_matches('/').to_owned(),
            query,
            key: path.to_string(),
            glob: None,
        })
    }

    fn file(url: &str) -> Result<Self, StoreError> {
        let bad = || StoreError::BadUrl {
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

    fn local(path: &str, url: &str) -> Result<Self, StoreError> {
        let bad = |problem| StoreError::BadUrl {
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
            basic_auth: None,
            root: String::new(),
            query: String::new(),
            secret: false,
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
    pub fn store_path(&self) -> Result<Path, StoreError> {
        self.path_of(&self.key)
    }

    /// Another key of the same bucket as the store's path.
    pub(crate) fn path_of(&self, key: &str) -> Result<Path, StoreError> {
        Path::parse(key.trim_end_matches('/')).map_err(|_| StoreError::BadUrl {
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
        format!("{}/{key}{}", self.root, self.query)
    }

    /// What two URLs share if one store serves both.
    pub(crate) fn store_key(&self) -> (Provider, String) {
        let user = self.basic_auth.as_deref().unwrap_or_default();
        (
            self.provider,
            if self.provider == Provider::Http {
                format!("{user} {}", self.base_url)
            } else {
                self.bucket.clone()
            },
        )
    }

    /// What two URLs share if their objects lie in the same place, however either is signed.
    pub(crate) fn place_key(&self) -> (Provider, String) {
        let place = format!("{}{}", self.root, self.query);
        (self.provider, place)
    }
}

/// `url` as it may be shown: without user, password and whatever else is secret.
pub fn shown_url(url: &str) -> String {
    match Location::parse(url) {
        Ok(location) if location.provider == Provider::Http => location.display(),
        Ok(_) => url.to_owned(),
        Err(_) => super::redact(url),
    }
}

/// `url` as it may be stored: the same if there is nothing secret in it. What has lost its secrets
/// is marked, and [`Location::parse`] refuses it by name.
pub fn storable_url(url: &str) -> String {
    match Location::parse(url) {
        Ok(location) if location.secret => {
            let mark = if location.query.is_empty() { '?' } else { '&' };
            format!("{}{mark}{REMOVED_NAME}={REMOVED}", location.display())
        }
        Ok(_) | Err(StoreError::RedactedUrl { .. }) => url.to_owned(),
        Err(_) => super::redact(url),
    }
}

/// What of a web URL's query says which object it is, and whether anything else is in it. What
/// changes with every signature is left out; of what nobody knows, a digest stays, as it may tell
/// objects apart.
fn query_for_people(url: &::url::Url) -> (String, bool) {
    use secrets::Parameter;
    let mut query = ::url::form_urlencoded::Serializer::new(String::new());
    let mut secret = false;
    for (name, value) in url.query_pairs() {
        let kind = if value.is_empty() {
            Parameter::Unknown
        } else {
            secrets::parameter(&name)
        };
        if kind == Parameter::Shown {
            query.append_pair(&name, &value);
            continue;
        }
        secret = true;
        secrets::remember(if value.is_empty() { &name } else { &value });
        if kind == Parameter::Unknown {
            let digest = format!("{:x}", Sha256::digest(format!("{name}={value}")));
            let shown = format!("{DIGEST_MARK}{}", &digest[..DIGEST_LENGTH]);
            let plain = !value.is_empty()
                && name.len() <= 24
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphabetic() || b"_-".contains(&byte));
            if plain {
                query.append_pair(&name, &shown);
            } else {
                query.append_key_only(&shown);
            }
        }
    }
    let query = query.finish();
    let query = if query.is_empty() {
        query
    } else {
        format!("?{query}")
    };
    // Signed values may stand in a form of their own, encoded or not.
    for part in url.query().unwrap_or_default().split('&') {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        if secrets::parameter(name) == Parameter::Secret {
            secrets::remember(value);
        }
    }
    (query, secret)
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

/// Where a local key's first part begins that holds glob characters and does not exist as it
/// stands.
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
        assert_eq!(web.base_url, "https://host:8443/?X-Amz-Signature=hunter2");
        assert_eq!(web.basic_auth.as_deref(), Some("bWU6aHVudGVyMg=="));
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
    fn a_url_signed_again_is_the_same_object() {
        let shown = |query: &str| {
            Location::parse(&format!("https://host/a.parquet?{query}"))
                .unwrap()
                .display()
        };
        let first = shown("versionId=3/4&X-Amz-Signature=abc&X-Amz-Date=1");
        assert_eq!(first, "https://host/a.parquet?versionId=3%2F4");
        assert_eq!(
            first,
            shown("X-Amz-Security-Token=t&versionId=3/4&X-Amz-Signature=def")
        );
        assert_ne!(first, shown("versionId=5&X-Amz-Signature=abc"));
        // What nobody knows tells objects apart, and is not shown.
        let unknown = shown("n=hunter2hunter2");
        assert!(
            !unknown.contains("hunter2") && unknown.contains("?n="),
            "{unknown}"
        );
        assert_ne!(unknown, shown("n=other"));
        let bare = shown("hunter2hunter2");
        assert!(!bare.contains("hunter2"), "{bare}");
    }

    #[test]
    fn a_stored_url_holds_no_secret_and_cannot_be_opened() {
        for (url, stored) in [
            ("https://h/a.parquet", "https://h/a.parquet"),
            (
                "https://h/a%20b.parquet?shard=1",
                "https://h/a%20b.parquet?shard=1",
            ),
            ("s3://b/x?y/*.parquet", "s3://b/x?y/*.parquet"),
            ("/data/[a]/x.parquet", "/data/[a]/x.parquet"),
            ("https://h/a?sig=1", "https://h/a?credentials=REMOVED"),
            (
                "https://h/a?shard=1&sig=1",
                "https://h/a?shard=1&credentials=REMOVED",
            ),
            ("https://u:p@h/a", "https://h/a?credentials=REMOVED"),
            ("ftp://u:p@h/a", "ftp://h/a"),
        ] {
            assert_eq!(storable_url(url), stored);
            // Storing again changes nothing.
            assert_eq!(storable_url(stored), stored);
        }
        let unknown = storable_url("https://h/a?n=hunter2");
        for url in [
            "https://h/a?credentials=REMOVED",
            &unknown,
            &shown_url("https://h/a?n=hunter2"),
        ] {
            let error = Location::parse(url).unwrap_err();
            assert!(matches!(error, StoreError::RedactedUrl { .. }), "{error}");
        }
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
