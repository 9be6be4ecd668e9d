//! From a store's error to ours: what kind of failure it is, whether waiting may mend it, and its
//! cause in plain words, with no secret and no markup in its text. For reading, writing, listing
//! and deleting, and for all stores.
use std::error::Error;
use std::time::Duration;

use object_store::client::{HttpError, HttpErrorKind};

use super::error::WaitedInVain;
use super::{Action, Denial, StoreCause, StoreError};
use super::{CredentialError, Location, redact};
use crate::Place;

/// What `error`, met at `place` while doing `action`, means for the user.
pub fn classify(
    error: &(dyn Error + 'static),
    action: Action,
    location: &Location,
    place: Place,
) -> StoreError {
    let facts = Facts::of(error);
    let source = StoreCause::new(error);
    let url = place.object.clone();
    if let Some(source) = facts.credentials {
        return StoreError::Credentials { url, source };
    }
    if let Some(waited) = facts.waited {
        return StoreError::Outage {
            action,
            place,
            waited_s: waited.as_secs(),
            source,
        };
    }
    let endpoint = || {
        let endpoint = facts.endpoint.clone();
        endpoint.unwrap_or_else(|| location.display_key(""))
    };
    if let Some(Network::Certificate(_)) = facts.network {
        return StoreError::Certificate {
            url,
            endpoint: endpoint(),
            source,
        };
    }
    if facts.network.as_ref().is_some_and(Network::is_unreachable) {
        return StoreError::Unreachable {
            url,
            endpoint: endpoint(),
            variable: location.provider.endpoint_variable(),
            source,
        };
    }
    let code = facts.code.as_deref().unwrap_or_default();
    let is_one_of = |codes: &[&str]| codes.contains(&code);
    let says_no_bucket = |message: &String| message.contains("bucket does not exist");
    if is_one_of(NO_BUCKET) || facts.message.as_ref().is_some_and(says_no_bucket) {
        return StoreError::NoBucket { url, source };
    }
    if is_one_of(OTHER_REGION) || facts.status == Some(301) {
        return StoreError::WrongRegion {
            url,
            region: facts.region,
            source,
        };
    }
    if facts.status == Some(412) || facts.kind == Some(Kind::Precondition) {
        return StoreError::Replaced {
            place,
            expected: "its first ETag".to_owned(),
        };
    }
    // A range beyond the end: the object has become shorter since its size was read.
    if facts.status == Some(416) {
        return StoreError::Replaced {
            place,
            expected: "a longer object".to_owned(),
        };
    }
    if matches!(facts.status, Some(405 | 501)) {
        return StoreError::NotAllowed {
            action,
            place,
            source,
        };
    }
    let denial = match facts.status {
        Some(407) => Some(Denial::Proxy),
        _ => Denial::of(code, facts.message.as_deref().unwrap_or_default()),
    };
    if denial.is_some()
        || matches!(facts.status, Some(401 | 403 | 407))
        || facts.kind == Some(Kind::Denied)
    {
        return StoreError::Denied {
            action,
            place,
            denial: denial.unwrap_or(Denial::Unknown),
            source,
        };
    }
    if facts.status == Some(404) || facts.kind == Some(Kind::NotFound) {
        return StoreError::NotFound { url, source };
    }
    if facts.wrong_range {
        return StoreError::WrongRange { place, source };
    }
    StoreError::Request {
        action,
        place,
        source,
    }
}

impl StoreCause {
    /// Keeps what `error` and its sources say.
    pub fn new(error: &(dyn std::error::Error + 'static)) -> Self {
        Self {
            message: plain(error),
        }
    }
}

/// Codes of buckets and containers that are not there.
const NO_BUCKET: &[&str] = &["NoSuchBucket", "ContainerNotFound", "InvalidBucketName"];
/// Codes of buckets that lie in another region.
const OTHER_REGION: &[&str] = &[
    "PermanentRedirect",
    "TemporaryRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
];
/// Codes of failures that pass, whatever their status.
const PASSING: &[&str] = &[
    "RequestTimeout",
    "SlowDown",
    "InternalError",
    "ServiceUnavailable",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "ServerBusy",
    "OperationTimedOut",
];
/// Codes of credentials that were good once, and are renewed.
const EXPIRED: &[&str] = &[
    "ExpiredToken",
    "ExpiredTokenException",
    "TokenRefreshRequired",
    "RequestExpired",
];

/// What waiting may do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hope {
    /// Nothing.
    None,
    /// It may pass.
    Later,
    /// It may pass where the store has answered before; else something is wrong with how it is
    /// asked.
    LaterIfBegun,
}

/// What waiting may do about `error`.
pub(super) fn hope(error: &(dyn Error + 'static)) -> Hope {
    let facts = Facts::of(error);
    match facts.credentials {
        Some(CredentialError::NoAnswer { .. }) => return Hope::LaterIfBegun,
        Some(_) => return Hope::None,
        None => {}
    }
    let code = facts.code.as_deref().unwrap_or_default();
    if PASSING.contains(&code) {
        return Hope::Later;
    }
    if EXPIRED.contains(&code) {
        return Hope::LaterIfBegun;
    }
    match (facts.status, facts.network) {
        (Some(501 | 505 | 511), _) | (_, Some(Network::Certificate(_))) => Hope::None,
        (Some(200..300 | 408 | 425 | 429 | 500..), _) => Hope::Later,
        (Some(_), _) => Hope::None,
        (None, Some(network)) if network.is_unreachable() => Hope::LaterIfBegun,
        (None, Some(_)) => Hope::Later,
        (None, None) if facts.kind.is_some() || facts.wrong_range => Hope::None,
        (None, None) => Hope::LaterIfBegun,
    }
}

/// Whether `error` is the store's wish to be asked less.
pub(crate) fn is_throttle(error: &(dyn Error + 'static)) -> bool {
    let facts = Facts::of(error);
    matches!(facts.status, Some(429 | 503)) || facts.code.as_deref() == Some("SlowDown")
}

/// The cause of `error` in plain words, for the middle of a sentence.
pub fn plain(error: &(dyn Error + 'static)) -> String {
    let facts = Facts::of(error);
    if let Some(error) = &facts.credentials {
        return full_text(error);
    }
    let at = match &facts.endpoint {
        Some(endpoint) => format!(" at {endpoint}"),
        None => String::new(),
    };
    if let Some(network) = &facts.network {
        return match network {
            Network::Refused => format!("connection refused{at}"),
            Network::UnknownHost => format!("the host's name is unknown{at}"),
            Network::NoRoute => format!("no route to the host{at}"),
            Network::NoConnection => format!("no connection in time{at}"),
            Network::Failed(text) => format!("connection failed{at}: {text}"),
            Network::Certificate(text) => format!("the certificate is refused{at}: {text}"),
            Network::Late => format!("no answer in time{at}"),
            Network::Closed => format!("connection closed{at}"),
            Network::Broken => format!("the answer broke off{at}"),
            Network::Silent(text) => text.clone(),
        };
    }
    match (facts.code, facts.message, facts.status_text) {
        (Some(code), Some(message), _) => format!("{code}: {message}"),
        (Some(code), None, Some(status)) => format!("{status}, {code}"),
        (Some(code), None, None) => code,
        (None, Some(message), Some(status)) => format!("{status}: {message}"),
        (None, None, Some(status)) => status,
        (None, Some(message), None) => message,
        (None, None, None) => redact(&without_markup(&full_text(error))),
    }
}

/// What happened to the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Network {
    Refused,
    UnknownHost,
    NoRoute,
    NoConnection,
    /// No connection for another reason.
    Failed(String),
    Certificate(String),
    Late,
    Closed,
    /// In the middle of the answer.
    Broken,
    /// Our own patience with an answer is over.
    Silent(String),
}

impl Network {
    /// Whether no connection came about.
    fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Self::Refused
                | Self::UnknownHost
                | Self::NoRoute
                | Self::NoConnection
                | Self::Failed(_)
        )
    }
}

/// What the store's client makes of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    NotFound,
    Denied,
    Precondition,
    /// None that waiting mends: it exists already, it is not supported, ...
    Other,
}

/// What an error of a store says, taken apart.
#[derive(Debug, Default)]
struct Facts {
    kind: Option<Kind>,
    status: Option<u16>,
    /// With its reason: "503 Service Unavailable".
    status_text: Option<String>,
    /// The store's own code, such as `SlowDown`.
    code: Option<String>,
    /// The store's message, without markup.
    message: Option<String>,
    /// The region that the store names.
    region: Option<String>,
    network: Option<Network>,
    endpoint: Option<String>,
    wrong_range: bool,
    waited: Option<Duration>,
    /// Why there are no credentials.
    credentials: Option<CredentialError>,
}

/// An answer was waited for in vain, by our own clock.
#[derive(Debug, thiserror::Error)]
#[error("nothing came for {:.1} s", .0.as_secs_f64())]
pub(crate) struct Silence(pub Duration);

impl Facts {
    fn of(error: &(dyn Error + 'static)) -> Self {
        let mut facts = Self::default();
        let text = full_text(error);
        facts.endpoint = endpoint_in(&text);
        let mut link = Some(error);
        while let Some(current) = link {
            facts.add(current, &text);
            link = current.source();
        }
        facts.wrong_range = facts.status.is_none()
            && ([
                "non-partial response",
                "Content-Range",
                "CONTENT_RANGE",
                "UnexpectedRange",
            ]
            .iter()
            .any(|mark| text.contains(mark))
                || (text.contains("Requested ") && text.contains(", got ")));
        facts
    }

    /// Adds what one link of the chain of errors says; the innermost link knows best.
    fn add(&mut self, link: &(dyn Error + 'static), text: &str) {
        if let Some(waited) = link.downcast_ref::<WaitedInVain>() {
            self.waited = Some(waited.waited);
        }
        if let Some(error) = link.downcast_ref::<CredentialError>() {
            self.credentials = Some(error.clone());
        }
        if let Some(silence) = link.downcast_ref::<Silence>() {
            self.network = Some(Network::Silent(silence.to_string()));
        }
        if let Some(error) = link.downcast_ref::<object_store::Error>() {
            self.kind = match error {
                object_store::Error::NotFound { .. } => Some(Kind::NotFound),
                object_store::Error::Precondition { .. } => Some(Kind::Precondition),
                object_store::Error::PermissionDenied { .. }
                | object_store::Error::Unauthenticated { .. } => Some(Kind::Denied),
                object_store::Error::Generic { .. } | object_store::Error::JoinError { .. } => {
                    self.kind
                }
                _ => self.kind.or(Some(Kind::Other)),
            };
        }
        if let Some(file) = link.downcast_ref::<std::io::Error>()
            && self.network.is_none()
            && is_for_good(file)
        {
            self.kind = self.kind.or(Some(Kind::Other));
        }
        // A page or something else that is no listing; it would come again.
        if link.to_string().starts_with("Got invalid ") {
            self.kind = self.kind.or(Some(Kind::Other));
        }
        if let Some(http) = link.downcast_ref::<HttpError>() {
            self.network = Some(network_of(http, text));
        }
        // The type of this one is private to the client; its text is not.
        let own = link.to_string();
        if let Some(rest) = own.strip_prefix("Server returned non-2xx status code: ") {
            let (status, body) = rest.split_once(':').unwrap_or((rest, ""));
            self.status = status.get(..3).and_then(|number| number.parse().ok());
            self.status_text = Some(status.trim().to_owned());
            self.add_body(body.trim());
        } else if let Some(body) = own.strip_prefix("Server returned error response: ") {
            self.status = Some(200);
            self.add_body(body.trim());
        } else if own.starts_with("Received redirect without LOCATION") {
            self.status = Some(301);
        } else if self.status.is_none() && link.source().is_none() {
            // Of stores that are not of this client.
            let status = own.get(..3).and_then(|number| number.parse().ok());
            self.status = status.filter(|_| own.get(3..4) == Some(" "));
            if self.status.is_some() {
                self.status_text = Some(own);
            }
        }
    }

    /// Adds what the body of an answer says: XML of S3 and Azure, JSON of Google, a page for
    /// people, or plain text.
    fn add_body(&mut self, body: &str) {
        if body.is_empty() {
            return;
        }
        if let Some(code) = element(body, "Code") {
            self.code = Some(code);
            self.message = element(body, "Message").map(|text| first_line(&text));
            self.region = element(body, "Region");
            return;
        }
        if let Ok(json) = serde_json::from_str::<serde_json::Value>(body) {
            let error = &json["error"];
            let text = |value: &serde_json::Value| value.as_str().map(first_line);
            self.code = text(&error["errors"][0]["reason"]).or_else(|| text(error));
            self.message = text(&error["message"]).or_else(|| text(&json["error_description"]));
            return;
        }
        self.message = Some(without_markup(body));
    }
}

/// Whether an error of a local file is one that waiting does not mend; a disk of another machine
/// may come back.
fn is_for_good(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::NotFound
            | ErrorKind::PermissionDenied
            | ErrorKind::IsADirectory
            | ErrorKind::NotADirectory
            | ErrorKind::InvalidInput
            | ErrorKind::InvalidFilename
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::Unsupported
    )
}

/// What a failure of the HTTP client is.
fn network_of(http: &HttpError, text: &str) -> Network {
    let mut link = http.source();
    while let Some(current) = link {
        match current
            .downcast_ref::<std::io::Error>()
            .map(std::io::Error::kind)
        {
            Some(std::io::ErrorKind::ConnectionRefused) => return Network::Refused,
            Some(
                std::io::ErrorKind::HostUnreachable
                | std::io::ErrorKind::NetworkUnreachable
                | std::io::ErrorKind::NetworkDown,
            ) => return Network::NoRoute,
            _ => {}
        }
        link = current.source();
    }
    let has = |mark: &str| text.contains(mark);
    if let Some((_, what)) = text.split_once("invalid peer certificate: ") {
        return Network::Certificate(first_line(what));
    }
    if has("dns error") || has("failed to lookup address") {
        return Network::UnknownHost;
    }
    let connecting = http.kind() == HttpErrorKind::Connect || has("(Connect)");
    match http.kind() {
        HttpErrorKind::Timeout if connecting => Network::NoConnection,
        HttpErrorKind::Timeout => Network::Late,
        _ if connecting && has("timed out") => Network::NoConnection,
        _ if connecting => Network::Failed(innermost(http)),
        HttpErrorKind::Decode => Network::Broken,
        _ => Network::Closed,
    }
}

/// The text of the last error of the chain.
fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    redact(&first_line(&last.to_string()))
}

/// The text between the first `<name>` and its end, without escapes.
fn element(xml: &str, name: &str) -> Option<String> {
    let start = xml.find(&format!("<{name}>"))? + name.len() + 2;
    let length = xml[start..].find(&format!("</{name}>"))?;
    let mut text = xml[start..start + length].trim().to_owned();
    for (escape, sign) in [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&apos;", "'"),
        ("&#34;", "\""),
        ("&#39;", "'"),
        ("&amp;", "&"),
    ] {
        text = text.replace(escape, sign);
    }
    (!text.is_empty()).then_some(text)
}

/// Longest text of a server that stands in a message, in characters.
const LONGEST_TEXT: usize = 300;

/// The first line, cut where it is long, without secrets.
fn first_line(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default().trim();
    let line = redact(line);
    if line.chars().count() <= LONGEST_TEXT {
        return line;
    }
    let cut: String = line.chars().take(LONGEST_TEXT).collect();
    format!("{cut} ...")
}

/// A server's text for people: of a page only its title.
fn without_markup(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let Some(start) = ["<!doctype", "<html", "<?xml", "<head", "<body"]
        .iter()
        .filter_map(|mark| lower.find(mark))
        .min()
    else {
        return first_line(text);
    };
    let before = first_line(&text[..start]);
    let title = lower.find("<title>").and_then(|start| {
        let from = start + "<title>".len();
        let length = lower[from..].find("</title>")?;
        Some(first_line(&text[from..from + length]))
    });
    let page = match title {
        Some(title) => format!("an HTML page, \"{title}\""),
        None => "a page that is no answer of a store".to_owned(),
    };
    if before.is_empty() {
        page
    } else {
        format!("{} {page}", before.trim_end_matches("..."))
    }
}

/// An error's text and that of its sources, each said once.
pub fn full_text(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let part = error.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        source = error.source();
    }
    text
}

/// Scheme, host and port of the first web URL in `text`.
fn endpoint_in(text: &str) -> Option<String> {
    let start = text.find("http://").or_else(|| text.find("https://"))?;
    let url = &text[start..];
    let host = url.find("://")? + 3;
    let end = url[host..]
        .find(|c: char| c == '/' || c.is_whitespace())
        .map_or(url.len(), |end| host + end);
    Some(url[..end].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_endpoint_in_a_text() {
        assert_eq!(
            endpoint_in("x http://127.0.0.1:9/b/k y").as_deref(),
            Some("http://127.0.0.1:9")
        );
    }

    /// A link of a chain of errors.
    #[derive(Debug)]
    struct Link(&'static str, Option<Box<dyn Error + Send + Sync>>);

    impl std::fmt::Display for Link {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Link {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|source| source as _)
        }
    }

    fn generic(source: impl Into<Box<dyn Error + Send + Sync>>) -> object_store::Error {
        object_store::Error::Generic {
            store: "store",
            source: source.into(),
        }
    }

    #[test]
    fn local_errors_are_waited_for_where_the_disk_may_come_back() {
        use std::io::ErrorKind;
        let local = |kind: ErrorKind| generic(std::io::Error::from(kind));
        assert_eq!(hope(&local(ErrorKind::PermissionDenied)), Hope::None);
        assert_eq!(hope(&local(ErrorKind::StorageFull)), Hope::None);
        assert_eq!(
            hope(&local(ErrorKind::StaleNetworkFileHandle)),
            Hope::LaterIfBegun
        );
        let connect = HttpError::new(
            HttpErrorKind::Connect,
            std::io::Error::other(Link("invalid peer certificate: UnknownIssuer", None)),
        );
        assert_eq!(hope(&generic(connect)), Hope::None);
    }

    #[test]
    fn an_answer_is_taken_apart_wherever_it_stands_in_the_chain() {
        let inner = Link(
            "Server returned non-2xx status code: 503 Service Unavailable: <?xml?><Error><Code>SlowDown</Code></Error>",
            None,
        );
        let middle = Link(
            "Error performing GET http://h:1/b/k in 2ms - Server returned non-2xx status code: 503 Service Unavailable: <?xml",
            Some(Box::new(inner)),
        );
        let outer = generic(Link(
            "Error performing list request",
            Some(Box::new(middle)),
        ));
        assert_eq!(plain(&outer), "503 Service Unavailable, SlowDown");
        assert!(is_throttle(&outer) && hope(&outer) == Hope::Later);
        // A code that is no number, a body that is no JSON, nothing at all.
        for text in [
            "Server returned non-2xx status code: ",
            "Server returned non-2xx status code: 4",
            "Server returned non-2xx status code: \u{1F980}\u{1F980}: {",
            "",
        ] {
            let error = generic(Link(text, None));
            assert_eq!(hope(&error), Hope::LaterIfBegun, "{text:?}");
            let _ = plain(&error);
        }
    }

    #[test]
    fn pages_and_long_texts_are_cut() {
        assert_eq!(
            without_markup("<!DOCTYPE html><HTML><TITLE>No</TITLE>"),
            "an HTML page, \"No\""
        );
        assert_eq!(
            without_markup("oops <body>x"),
            "oops a page that is no answer of a store"
        );
        let cut = first_line(&"\u{e4}".repeat(1000));
        assert_eq!(cut.chars().count(), LONGEST_TEXT + 4);
        assert_eq!(
            element("<Code> a&amp;lt; </Code>", "Code").as_deref(),
            Some("a&lt;")
        );
    }
}
