//! What can go wrong in the pipeline. A sample can be bad (counted, replaced, reported) or a run can be bad (it ends).
use crate::dataset::{Beginning, LeaveOut};
use crate::image_decode::ImageFormat;
use crate::store::{OddKeys, TableFormat, TableProblem};

/// Where something happened, as far as known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// URL of the object, without secrets.
    pub object: String,
    /// Row group in the object.
    pub row_group: Option<usize>,
    /// Row in the row group.
    pub row: Option<usize>,
    /// Byte range in the object.
    pub bytes: Option<std::ops::Range<u64>>,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.object)?;
        if let Some(row_group) = self.row_group {
            write!(f, ", row group {row_group}")?;
        }
        if let Some(row) = self.row {
            write!(f, ", row {row}")?;
        }
        if let Some(bytes) = &self.bytes {
            write!(f, ", bytes {}..{}", bytes.start, bytes.end)?;
        }
        Ok(())
    }
}

/// The store's account of a failure in plain words: without user names, passwords, query strings and markup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StoreCause {
    message: String,
}

impl StoreCause {
    /// Keeps what `error` and its sources say.
    pub fn new(error: &(dyn std::error::Error + 'static)) -> Self {
        Self {
            message: crate::store::plain(error),
        }
    }
}

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
pub struct UnexpectedRange {
    /// The range of the request.
    pub asked: std::ops::Range<u64>,
    /// The range of the answer.
    pub got: std::ops::Range<u64>,
}

fn shown(urls: &[String]) -> String {
    let urls: Vec<String> = urls
        .iter()
        .map(|url| crate::store::shown_url(url))
        .collect();
    urls.join(", ")
}

/// A data set cannot be opened or read: the run is bad.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The list of URLs is empty.
    #[error(
        "no data set is named: give at least one path or URL, such as s3://bucket/train-*.parquet"
    )]
    NoUrls,
    /// A data set and a mixture are named at once.
    #[error(
        "both a data set ({}) and a mixture are named: name the data set as one more source of the mixture, or leave the mixture out",
        shown(urls)
    )]
    UrlsBesideMixture {
        /// The data set's URLs.
        urls: Vec<String>,
    },
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
    /// A weight of a mixture is of no use.
    #[error(
        "the weight of {} in the mixture is {weight}, but it must be positive and finite; leave a data set out to read nothing of it",
        shown(urls)
    )]
    MixtureWeight {
        /// The data set's URLs.
        urls: Vec<String>,
        /// Its weight.
        weight: f64,
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
    /// No shard is of the split that was asked for.
    #[error("no shard is of the split `{split}`: {}", splits_found(found, *unnamed, example))]
    NoSuchSplit {
        /// The split.
        split: String,
        /// The splits that there are, with their numbers of shards.
        found: Vec<(String, usize)>,
        /// Shards whose names say no split.
        unnamed: usize,
        /// The first shard.
        example: String,
    },
    /// Something about the data set is doubtful, and the configuration is strict.
    #[error(
        "strict: {}; mend it, or leave --strict (data.strict in a recipe) out to go on with a warning",
        warnings.iter().map(ToString::to_string).collect::<Vec<_>>().join("; and ")
    )]
    Strict {
        /// All of it.
        warnings: Vec<crate::dataset::DatasetWarning>,
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
        provider: crate::store::Provider,
    },
    /// The credentials cannot be got from where the settings say.
    #[error("cannot get the credentials for {url}")]
    Credentials {
        /// The URL.
        url: String,
        /// Why.
        #[source]
        source: crate::store::CredentialError,
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
    /// The request was shared with another row group, which carries the cause.
    #[error("{place} was part of the failed request for row group {first}")]
    SameRequest {
        /// Where.
        place: Place,
        /// The first row group of the request.
        first: u32,
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
    /// The object is not Parquet.
    #[error("{place} is not a Parquet file: it {start}")]
    NotParquet {
        /// Which.
        place: Place,
        /// How it begins.
        start: Beginning,
    },
    /// The object begins as Parquet and ends elsewhere.
    #[error("{place} is truncated: {what}; upload it again ({size} bytes are there)")]
    Truncated {
        /// Which.
        place: Place,
        /// How that is known.
        what: &'static str,
        /// Its size in bytes.
        size: u64,
    },
    /// The object is encrypted.
    #[error(
        "{place} is encrypted (Parquet modular encryption), which is not supported; write it again without"
    )]
    Encrypted {
        /// Which.
        place: Place,
    },
    /// The file uses what the reader lacks; it need not be damaged.
    #[error(
        "{place} is written with a feature of Parquet that is not supported: {feature}; write the file again with usual settings \
         (such as pyarrow's defaults)"
    )]
    Unsupported {
        /// Which.
        place: Place,
        /// What the reader lacks.
        feature: String,
    },
    /// The footer cannot be read.
    #[error("the footer of {place} is damaged; write or upload the file again")]
    BadFooter {
        /// Which.
        place: Place,
        /// What the reader says.
        #[source]
        source: parquet::errors::ParquetError,
    },
    /// The footer contradicts itself or the file.
    #[error("the footer of {place} is damaged: {problem}; write or upload the file again")]
    BadMetadata {
        /// Where.
        place: Place,
        /// The contradiction.
        problem: &'static str,
    },
    /// The schema is none that we read.
    #[error("cannot read images from {place}{leave_out}")]
    Schema {
        /// Which.
        place: Place,
        /// Why.
        #[source]
        source: Box<nepa_schemas::SchemaError>,
        /// How the others can be read without it.
        leave_out: LeaveOut,
    },
    /// Two shards read differently.
    #[error(
        "the shards do not go together: {difference} (first {first}, then {second}); read them as separate data sets{leave_out}"
    )]
    SchemasDiffer {
        /// The first shard's URL.
        first: String,
        /// The URL of the one that differs.
        second: String,
        /// In what.
        difference: String,
        /// How most can be read without the few.
        leave_out: LeaveOut,
    },
    /// All shards are empty.
    #[error("{url} and all other shards hold no rows")]
    NoRows {
        /// The first shard's URL.
        url: String,
    },
    /// All rows are without an image.
    #[error(
        "none of the {num_rows} rows of {url} and the other shards holds an image: `{column}` is null in all of them; if a path or URL stands \
         instead, download the images first (for example with img2dataset, output_format=parquet), or name another column (--image-column)"
    )]
    NoImages {
        /// The first shard's URL.
        url: String,
        /// The image column.
        column: String,
        /// Rows.
        num_rows: u64,
    },
    /// A page's checksum does not match its bytes.
    #[error(
        "a page of {place} has a wrong checksum: the bytes were damaged in storage; upload the file again"
    )]
    PageChecksum {
        /// Where.
        place: Place,
        /// What the reader says.
        #[source]
        source: parquet::errors::ParquetError,
    },
    /// A page cannot be decompressed or decoded.
    #[error("a page of {place} is damaged; write or upload the file again")]
    BadPage {
        /// Where.
        place: Place,
        /// What the reader says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A row group holds other rows than its footer says.
    #[error("{place} holds {found} rows, and its footer says {expected}; write the file again")]
    RowCount {
        /// Where.
        place: Place,
        /// Rows in the footer.
        expected: u64,
        /// Rows read.
        found: u64,
    },
    /// More rows hold an image than the statistics leave.
    #[error(
        "the statistics of {place} count {said} rows without an image, and {found} are: which rows are samples cannot be known; write the file \
         again"
    )]
    AbsentCount {
        /// Where.
        place: Place,
        /// Rows without an image by the statistics.
        said: u64,
        /// Rows without an image.
        found: u64,
    },
    /// A column would take much more memory than the footer says.
    #[error(
        "the column `{column}` of {place} unpacks to at least {found} bytes, and its footer says {said}: it was not unpacked. If the file is sound, \
         write it again with plain or dictionary encoding; otherwise it was damaged, or made to exhaust memory"
    )]
    UnpacksLarger {
        /// Where.
        place: Place,
        /// Dotted path of the column.
        column: String,
        /// Bytes that it would take, as far as counted.
        found: u64,
        /// Bytes that the part takes by the footer.
        said: u64,
    },
    /// A row group claims more rows than can be images.
    #[error(
        "{place} claims {num_rows} rows in {num_bytes} bytes, fewer than one byte a row: its footer is damaged, or the rows all hold the same few \
         images; write row groups of at most {most} rows"
    )]
    TooManyRows {
        /// Where.
        place: Place,
        /// Rows in the footer.
        num_rows: u64,
        /// Bytes of the columns that are read, as stored.
        num_bytes: u64,
        /// Rows that are always read.
        most: u64,
    },
}

fn also(unreadable: &OddKeys) -> String {
    match unreadable.count {
        0 => String::new(),
        _ => format!("; {unreadable}"),
    }
}

fn splits_found(found: &[(String, usize)], unnamed: usize, example: &str) -> String {
    let mut parts = found
        .iter()
        .map(|(split, count)| format!("{split} ({count})"))
        .collect::<Vec<_>>();
    if unnamed > 0 {
        parts.push(format!(
            "{unnamed} whose name says no split, such as {example}"
        ));
    }
    format!(
        "there are {}; choose one of them, or give a glob",
        parts.join(", ")
    )
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

/// One image cannot be decoded or cropped: the sample is bad.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// There are no bytes.
    #[error("the image is empty (0 bytes)")]
    Empty,
    /// The first bytes belong to no known format.
    #[error(
        "not an image in a known format (JPEG, PNG, WebP, BMP, GIF, TIFF): it begins with {start:02x?}"
    )]
    UnknownFormat {
        /// The first bytes, at most 8.
        start: Vec<u8>,
    },
    /// libjpeg-turbo refuses it.
    #[error("the JPEG cannot be decoded")]
    Jpeg(#[source] crate::image_decode::LibjpegError),
    /// A decoder other than the JPEG one refuses it.
    #[error("the {format} cannot be decoded")]
    Decode {
        /// Its format.
        format: ImageFormat,
        /// What the decoder says.
        #[source]
        source: image::ImageError,
    },
    /// The GIF decoder refuses it.
    #[error("the GIF cannot be decoded")]
    Gif(#[source] gif::DecodingError),
    /// The TIFF decoder refuses it.
    #[error("the TIFF cannot be decoded")]
    Tiff(#[source] tiff::TiffError),
    /// The pixels are compressed in a way that is not read.
    #[error(
        "the {format} is compressed by {compression}, which is not read; save it with LZW, Deflate, Zstandard or no compression"
    )]
    UnsupportedCompression {
        /// Its format.
        format: ImageFormat,
        /// The method.
        compression: String,
    },
    /// The file ends before the image does.
    #[error("the {format} is truncated: the file ends before the image does")]
    Truncated {
        /// Its format.
        format: ImageFormat,
    },
    /// It holds no image, or one without pixels.
    #[error("the {format} holds no pixels ({width} x {height})")]
    NoPixels {
        /// Its format.
        format: ImageFormat,
        /// Width in the header.
        width: u64,
        /// Height in the header.
        height: u64,
    },
    /// The device's decoder refused it; the CPU's has the last word.
    #[error("{reason}")]
    Device {
        /// Its answer.
        reason: String,
    },
    /// The header claims more pixels than a training image can have.
    #[error(
        "the {format} claims {width} x {height} pixels, more than the limit of {limit} (a decompression bomb?)"
    )]
    TooLarge {
        /// Its format.
        format: ImageFormat,
        /// Width in the header.
        width: u64,
        /// Height in the header.
        height: u64,
        /// Most pixels allowed.
        limit: u64,
    },
    /// The header claims more pixels than so few bytes can hold.
    #[error("the {format} claims {width} x {height} pixels, which {num_bytes} bytes cannot hold")]
    TooFewBytes {
        /// Its format.
        format: ImageFormat,
        /// Width in the header.
        width: u64,
        /// Height in the header.
        height: u64,
        /// Length of the file.
        num_bytes: usize,
    },
    /// The kind of pixels has no meaning as RGB here (colour of floating point, say).
    #[error(
        "the {format} holds {color}, which has no set conversion to 8-bit RGB; save it as 8-bit RGB or gray"
    )]
    UnsupportedColor {
        /// Its format.
        format: ImageFormat,
        /// The kind of pixels.
        color: String,
    },
    /// A crop plan was drawn for another image.
    #[error(
        "the crop {width} x {height} at ({x}, {y}) does not lie in the image of {image_width} x {image_height} pixels"
    )]
    CropOutside {
        /// Left edge of the crop.
        x: f64,
        /// Top edge of the crop.
        y: f64,
        /// Width of the crop.
        width: f64,
        /// Height of the crop.
        height: f64,
        /// Width of the upright image.
        image_width: u32,
        /// Height of the upright image.
        image_height: u32,
    },
}

/// The loader cannot go on: the run is bad.
#[derive(Debug, thiserror::Error)]
pub enum LoaderError {
    /// Reading the data set failed.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// A setting cannot work.
    #[error("the loader's setting {setting} = {value} cannot work: {why}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// Its value.
        value: String,
        /// The rule that it breaks.
        why: String,
    },
    /// The augmentation cannot be built.
    #[error(transparent)]
    Augment(#[from] crate::augment::AugmentError),
    /// The saved position belongs to another run.
    #[error(
        "cannot resume: {field} was {saved} when the state was saved and is {current} now; resume with the same {field}, or start a new run"
    )]
    StateMismatch {
        /// What differs.
        field: &'static str,
        /// Its value in the state.
        saved: String,
        /// Its value now.
        current: String,
    },
    /// More samples are bad than the budget allows.
    #[error(
        "{bad} of {tried} samples are bad, more than the {:.2} % that max_bad_fraction allows. The first:{list}\nRaise max_bad_fraction and go on, or mend the shards and start anew (mended ones are another data set).{file}",
        max_fraction * 100.0
    )]
    TooManyBad {
        /// Bad samples.
        bad: u64,
        /// Samples tried.
        tried: u64,
        /// The budget.
        max_fraction: f64,
        /// The first of them, a line each.
        list: String,
        /// Where all are listed.
        file: String,
    },
    /// No sample near a bad one can replace it.
    #[error(
        "{place} is bad ({reason}), and so is every other sample of its shuffle window: nothing can replace it; mend the shard"
    )]
    NothingToReplace {
        /// The bad sample.
        place: Place,
        /// Why it is bad.
        reason: String,
    },
    /// The list of bad samples cannot be written.
    #[error("cannot write the list of bad samples {}: {source}", path.display())]
    BadSampleList {
        /// The file.
        path: std::path::PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The image backend failed in a way that is no sample's fault.
    #[error("the device that decodes images failed")]
    Backend(#[from] crate::backend::BackendError),
    /// A thread cannot be started.
    #[error("cannot start a decode thread: {0}")]
    Thread(#[source] std::io::Error),
    /// A thread of the loader ended by a panic: our bug, already reported on standard error.
    #[error(
        "a thread of the loader panicked (its message is above); this is a bug, please report it"
    )]
    ThreadDied,
}
