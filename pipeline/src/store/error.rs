//! What can go wrong between us and a store: addresses, listings, credentials, requests.
use std::time::Duration;

use super::{CredentialError, OddKeys, Provider, StoreCause, TableFormat, TableProblem};
use crate::Place;

/// What a store was asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// To give an object, or part of it.
    Read,
    /// To keep an object.
    Write,
    /// To name its objects.
    List,
    /// To remove an object.
    Delete,
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::List => "list",
            Self::Delete => "delete",
        })
    }
}

/// Why a store refuses, as far as it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    /// It does not say; as a rule a permission is missing.
    Unknown,
    /// The secret key does not fit, or the store does not know the key.
    Key,
    /// The credentials have expired.
    Expired,
    /// This machine's clock is wrong.
    Clock,
    /// The account is disabled.
    Disabled,
    /// Whoever reads the bucket has to agree to pay for it.
    RequesterPays,
    /// It is the proxy that refuses.
    Proxy,
}

impl Denial {
    /// By the store's code and message.
    pub(crate) fn of(code: &str, message: &str) -> Option<Self> {
        Some(match code {
            "SignatureDoesNotMatch"
            | "InvalidAccessKeyId"
            | "InvalidClientTokenId"
            | "UnrecognizedClientException"
            | "AuthenticationFailed"
            | "InvalidAuthenticationInfo"
            | "InvalidToken" => Self::Key,
            "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" | "invalid_grant" => {
                Self::Expired
            }
            "RequestTimeTooSkewed" | "RequestExpired" => Self::Clock,
            "AllAccessDisabled" | "AccountProblem" | "AccountIsDisabled" | "NotSignedUp"
            | "accountDisabled" | "UserDisabled" => Self::Disabled,
            "UserProjectMissing" => Self::RequesterPays,
            _ if message.to_ascii_lowercase().contains("requester pays") => Self::RequesterPays,
            _ => return None,
        })
    }

    /// What to do about it.
    fn remedy(self, action: Action) -> &'static str {
        match (self, action) {
            (Self::Unknown, Action::Read) => {
                "check the credentials (are they of this endpoint? expired?) and that they may read it (on S3 s3:GetObject); \
                 where they may not list the bucket (on S3 s3:ListBucket), a name that does not exist is refused, too"
            }
            (Self::Unknown, Action::Write) => {
                "check the credentials (are they of this endpoint? expired?) and that they may write there (on S3 s3:PutObject)"
            }
            (Self::Unknown, Action::List) => {
                "check the credentials (are they of this endpoint? expired?) and that they may list the bucket \
                 (on S3 s3:ListBucket); single files can be named without that"
            }
            (Self::Unknown, Action::Delete) => {
                "check the credentials (are they of this endpoint? expired?) and that they may delete there \
                 (on S3 s3:DeleteObject)"
            }
            (Self::Key, _) => {
                "the key or its secret is wrong, or of another endpoint or account: check the credentials"
            }
            (Self::Expired, _) => "the credentials have expired: log in again or renew them",
            (Self::Clock, _) => {
                "this machine's clock differs from the store's: set it (chrony or timedatectl does), then try again"
            }
            (Self::Disabled, _) => "the account or the bucket is disabled: ask whoever pays for it",
            (Self::RequesterPays, _) => {
                "whoever reads this bucket pays for it: agree to that (AWS_REQUEST_PAYER=true), or copy the data"
            }
            (Self::Proxy, _) => {
                "it is the proxy that asks for a name and a password: set them in HTTPS_PROXY, or name the host in NO_PROXY"
            }
        }
    }
}

/// Bytes came that were not asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("asked for bytes {}..{}, got {}..{}", asked.start, asked.end, got.start, got.end)]
pub(crate) struct UnexpectedRange {
    /// The range of the request.
    pub asked: std::ops::Range<u64>,
    /// The range of the answer.
    pub got: std::ops::Range<u64>,
}

/// A store cannot be read, written, listed or made sense of.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The list of URLs is empty.
    #[error(
        "no data set is named: give at least one path or URL, such as s3://bucket/train-*.parquet"
    )]
    NoUrls,
    /// The folder of the cache cannot be used.
    #[error("cannot use {} as io.cache_dir; name a folder that may be written, or none", folder.display())]
    CacheFolder {
        /// The folder.
        folder: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The folder of the cache holds something else.
    #[error(
        "{} holds {} and is no cache of nepa: name an empty or a new folder as io.cache_dir",
        folder.display(),
        found.display()
    )]
    ForeignCache {
        /// The folder.
        folder: std::path::PathBuf,
        /// One of the files in it.
        found: std::path::PathBuf,
    },
    /// The URL has no usable form.
    #[error("cannot read the URL {url}: {problem}")]
    BadUrl {
        /// The URL, without secrets.
        url: String,
        /// What is wrong with it and what to write instead.
        problem: &'static str,
    },
    /// A URL of a stored recipe, which was stored without its secrets.
    #[error(
        "{url} was stored without what opens it (signature, user name or password): give the whole URL again, with \
         --data or in the recipe"
    )]
    RedactedUrl {
        /// The URL as stored.
        url: String,
    },
    /// The scheme is none that we know.
    #[error(
        "cannot read {url}: the scheme {scheme}:// is unknown; use a path, file://, s3://, gs://, az:// or http(s)://"
    )]
    UnknownScheme {
        /// The URL, without secrets.
        url: String,
        /// Its scheme.
        scheme: String,
    },
    /// The glob does not parse.
    #[error(
        "the glob in {url} cannot be read; quote it in the shell and balance its [..] and {{..}}"
    )]
    BadGlob {
        /// The URL.
        url: String,
        /// What is wrong.
        #[source]
        source: globset::Error,
    },
    /// A prefix holds no Parquet object.
    #[error("no *.parquet object below {url}; {found}{}", also(unreadable))]
    EmptyPrefix {
        /// The prefix.
        url: String,
        /// What is there instead.
        found: Found,
        /// What lies there and cannot be named.
        unreadable: OddKeys,
    },
    /// A glob matches nothing.
    #[error("{url} matches no object; {found}")]
    NoMatch {
        /// The glob.
        url: String,
        /// What is there instead.
        found: Found,
    },
    /// A table whose log decides what of its folder is data, and cannot be followed.
    #[error("{url} is {format}, {problem}")]
    Table {
        /// The table's folder.
        url: String,
        /// Its format.
        format: TableFormat,
        /// Why it is not read, and what to do.
        problem: TableProblem,
    },
    /// A local folder cannot be listed.
    #[error("cannot list {folder}; make it readable, or name what is to be read without it")]
    UnreadableFolder {
        /// The folder.
        folder: String,
        /// Why.
        source: std::io::Error,
    },
    /// A link to a shard leads nowhere.
    #[error(
        "{link} is a link to {target}, which does not exist: the shard was moved, removed or not yet downloaded \
         (git-annex: `git annex get`); mend or remove the link"
    )]
    BrokenLink {
        /// The link.
        link: String,
        /// Where it leads.
        target: String,
    },
    /// A link to a folder that holds it.
    #[error(
        "{link} is a link to {target}, which holds it: listing it would never end; remove the link, or name a folder without it"
    )]
    LinkLoop {
        /// The link.
        link: String,
        /// Where it leads.
        target: String,
    },
    /// An object or folder does not exist.
    #[error("{url} does not exist; check the name, or list its parent")]
    NotFound {
        /// URL of the object.
        url: String,
        /// What the store says.
        #[source]
        source: StoreCause,
    },
    /// The bucket or container does not exist.
    #[error(
        "the bucket of {url} does not exist at this endpoint; check its name, the region and the endpoint"
    )]
    NoBucket {
        /// The URL.
        url: String,
        /// What the store says.
        #[source]
        source: StoreCause,
    },
    /// No credentials were found for the store.
    #[error("no credentials for {url}: {}", provider.no_credentials())]
    NoCredentials {
        /// The URL.
        url: String,
        /// Whose they would be.
        provider: Provider,
    },
    /// The credentials cannot be got from where the settings say.
    #[error("cannot get the credentials for {url}")]
    Credentials {
        /// The URL.
        url: String,
        /// Why.
        #[source]
        source: CredentialError,
    },
    /// The address of the store makes no sense.
    #[error("cannot use the endpoint {variable} = {value} for {url}: {problem}")]
    Endpoint {
        /// The URL.
        url: String,
        /// The environment variable, or the key of the profile.
        variable: &'static str,
        /// The endpoint, without secrets.
        value: String,
        /// What is wrong with it, and what to write.
        problem: &'static str,
    },
    /// The file of trusted certificates cannot be used.
    #[error("cannot read certificates from {} ({variable}), which {url} needs; name a file of certificates in PEM format", file.display())]
    CertificateFile {
        /// The URL.
        url: String,
        /// The environment variable.
        variable: &'static str,
        /// The file.
        file: std::path::PathBuf,
        /// Why.
        #[source]
        source: StoreCause,
    },
    /// The store's settings do not go together.
    #[error("cannot set up the store of {url}; check the environment variables of its cloud")]
    Setup {
        /// The URL.
        url: String,
        /// What is wrong.
        #[source]
        source: StoreCause,
    },
    /// Nobody answers at the endpoint.
    #[error(
        "cannot connect to {endpoint} for {url}; check the endpoint ({variable}), the network and the proxy"
    )]
    Unreachable {
        /// The URL.
        url: String,
        /// Where we tried to connect.
        endpoint: String,
        /// The environment variable that decides it.
        variable: &'static str,
        /// What the network says.
        #[source]
        source: StoreCause,
    },
    /// Nobody vouches for the endpoint.
    #[error(
        "cannot connect to {endpoint} for {url}: its certificate is not trusted; name the PEM file of the \
         authority that signed it in SSL_CERT_FILE or AWS_CA_BUNDLE, or correct the endpoint's name (one that signed itself \
         must be marked CA:FALSE; for tests only: AWS_ALLOW_INVALID_CERTIFICATES=true, so too AZURE_ and GOOGLE_)"
    )]
    Certificate {
        /// The URL.
        url: String,
        /// Where we tried to connect.
        endpoint: String,
        /// What is wrong with it.
        #[source]
        source: StoreCause,
    },
    /// Nothing came from the store for longer than we wait.
    #[error(
        "cannot {action} {place}: nothing has come from the store for {waited_s} s (io.outage_s); see whether it and the \
         network are up, then start again or resume"
    )]
    Outage {
        /// What was being done.
        action: Action,
        /// Where.
        place: Place,
        /// How long was waited, in seconds.
        waited_s: u64,
        /// What the last attempt says.
        #[source]
        source: StoreCause,
    },
    /// The bucket lies in another region.
    #[error(
        "the bucket of {url} lies in another region than the one that is asked; set AWS_REGION to {}",
        region.as_deref().unwrap_or("the bucket's")
    )]
    WrongRegion {
        /// The URL.
        url: String,
        /// The bucket's region, where the store says it.
        region: Option<String>,
        /// What the store says.
        #[source]
        source: StoreCause,
    },
    /// The store refuses (401, 403).
    #[error("the store refuses access to {place} (to {action}); {}", denial.remedy(*action))]
    Denied {
        /// What was being done.
        action: Action,
        /// Where.
        place: Place,
        /// Why, as far as known.
        denial: Denial,
        /// What the store says.
        #[source]
        source: StoreCause,
    },
    /// The server does not do such things at all (405, 501).
    #[error(
        "cannot {action} {place}: this server does not take such requests; {}",
        match action {
            Action::Write | Action::Delete => "name a folder, or a bucket that can be written (s3://, gs://, az://)",
            Action::Read | Action::List => "check that the endpoint is that of a store",
        }
    )]
    NotAllowed {
        /// What was being done.
        action: Action,
        /// Where.
        place: Place,
        /// What the server says.
        #[source]
        source: StoreCause,
    },
    /// A request failed, and waiting does not help.
    #[error("cannot {action} {place}: the request failed")]
    Request {
        /// What was being done.
        action: Action,
        /// Where.
        place: Place,
        /// What the store says.
        #[source]
        source: StoreCause,
    },
    /// The answer is not the range that was asked for.
    #[error(
        "the server answers {place} with other bytes than the range asked for; it, or a proxy before it, does not \
         support range requests: copy the data to a disk or a store that does (nginx, S3), or leave out the proxy"
    )]
    WrongRange {
        /// Where.
        place: Place,
        /// What came instead.
        #[source]
        source: StoreCause,
    },
    /// The object is not the one whose footer was read.
    #[error(
        "{place} was replaced while the data set was open (expected {expected}); stop whoever writes it, then start \
         again or resume"
    )]
    Replaced {
        /// Where.
        place: Place,
        /// ETag or size when the data set was opened.
        expected: String,
    },
}

impl StoreError {
    /// Where it happened: an object, or the URL that names several.
    pub fn place(&self) -> Option<Place> {
        match self {
            Self::BadUrl { url, .. }
            | Self::RedactedUrl { url, .. }
            | Self::UnknownScheme { url, .. }
            | Self::BadGlob { url, .. }
            | Self::EmptyPrefix { url, .. }
            | Self::NoMatch { url, .. }
            | Self::Table { url, .. }
            | Self::NotFound { url, .. }
            | Self::NoBucket { url, .. }
            | Self::NoCredentials { url, .. }
            | Self::Credentials { url, .. }
            | Self::Endpoint { url, .. }
            | Self::CertificateFile { url, .. }
            | Self::Setup { url, .. }
            | Self::Unreachable { url, .. }
            | Self::Certificate { url, .. }
            | Self::WrongRegion { url, .. } => Some(Place::of(url)),
            Self::Outage { place, .. }
            | Self::Denied { place, .. }
            | Self::NotAllowed { place, .. }
            | Self::Request { place, .. }
            | Self::WrongRange { place, .. }
            | Self::Replaced { place, .. } => Some(place.clone()),
            Self::UnreadableFolder { folder: object, .. }
            | Self::BrokenLink { link: object, .. }
            | Self::LinkLoop { link: object, .. } => Some(Place::of(object)),
            Self::NoUrls | Self::CacheFolder { .. } | Self::ForeignCache { .. } => None,
        }
    }
}

fn also(unreadable: &OddKeys) -> String {
    match unreadable.count {
        0 => String::new(),
        _ => format!("; {unreadable}"),
    }
}

/// What lies where nothing fitting was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The first few URLs.
    pub examples: Vec<String>,
    /// How many there are.
    pub total: usize,
    /// Where was looked.
    pub below: String,
    /// One of those that are no data, as some part of their name begins with `_` or `.`.
    pub left_out: Option<String>,
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let (0, Some(left_out)) = (self.total, &self.left_out) {
            return write!(
                f,
                "all that there is below {} begins with `_` or `.`, such as {left_out}, which marks what is no data: \
                 name it to read it",
                self.below
            );
        }
        if self.total == 0 {
            return write!(
                f,
                "there is nothing at all below {}: check the name",
                self.below
            );
        }
        let noun = if self.total == 1 { "object" } else { "objects" };
        write!(
            f,
            "what there is below {}: {} {noun}, {}",
            self.below,
            self.total,
            self.examples.join(", ")
        )?;
        if self.total > self.examples.len() {
            write!(f, ", ...")?;
        }
        if let Some(left_out) = &self.left_out {
            write!(
                f,
                "; beside it what begins with `_` or `.`, such as {left_out}, and is no data"
            )?;
        }
        Ok(())
    }
}

/// A store was waited for in vain: what stands in the error of the request.
#[derive(Debug, thiserror::Error)]
#[error("waited for {} s (io.outage_s)", waited.as_secs())]
pub(crate) struct WaitedInVain {
    /// For how long nothing came.
    pub waited: Duration,
    /// What the last attempt says.
    #[source]
    pub source: Box<object_store::Error>,
}
