//! The HTTP client below all stores: counts what goes over the wire, which the store itself does
//! not tell, ends requests that stand still, keeps what answers say in their headers alone, and
//! takes keys that cannot be named out of listings.
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};
use object_store::{ClientConfigKey, ClientOptions};
use tokio::time::timeout;

use super::cause::Silence;
use super::odd_keys::{OddKeys, without_odd_keys};

/// What went over the wire.
#[derive(Debug, Default)]
pub(crate) struct HttpCounters {
    /// Requests with a `Range` header, repeated ones included.
    pub range_attempts: AtomicU64,
    /// Keys that were taken out of listings.
    pub odd_keys: Mutex<OddKeys>,
}

/// The store's usual HTTP client, counted.
#[derive(Debug, Clone)]
pub(crate) struct CountingConnector {
    /// The counters, shared by all clients of this connector.
    pub counters: Arc<HttpCounters>,
    /// Longest time without a byte.
    silence: Duration,
}

impl Default for CountingConnector {
    fn default() -> Self {
        Self {
            counters: Arc::default(),
            silence: Duration::from_secs(30),
        }
    }
}

/// Longest time in which a store joins the parts of an upload; S3 sends spaces meanwhile.
const LONGEST_JOINING: Duration = Duration::from_mins(2);
/// A body that is sent more slowly than this, in bytes a second, stands still.
const SLOWEST_SENT: u64 = 32 << 10;

impl CountingConnector {
    /// The same counters, with requests that end after so long without a byte.
    pub(crate) fn with_silence(&self, silence: Duration) -> Self {
        Self {
            counters: Arc::clone(&self.counters),
            silence,
        }
    }
}

impl HttpConnector for CountingConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let silence = format!("{}ms", self.silence.as_millis().max(1));
        let reading = options
            .clone()
            .with_config(ClientConfigKey::ReadTimeout, silence);
        Ok(HttpClient::new(CountingClient {
            reading: ReqwestConnector::default().connect(&reading)?,
            // The client's own timeout counts what is being sent as silence.
            sending: ReqwestConnector::default().connect(options)?,
            silence: self.silence,
            counters: Arc::clone(&self.counters),
        }))
    }
}

#[derive(Debug)]
struct CountingClient {
    reading: HttpClient,
    sending: HttpClient,
    silence: Duration,
    counters: Arc<HttpCounters>,
}

#[async_trait::async_trait]
impl HttpService for CountingClient {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if request.headers().contains_key("range") {
            self.counters.range_attempts.fetch_add(1, Ordering::Relaxed);
        }
        let is_listing = request.method() == "GET"
            && request.uri().query().is_some_and(|query| {
                let mut settings = query.split('&');
                settings.any(|setting| matches!(setting, "list-type=2" | "comp=list"))
            });
        let (is_head, region) = (request.method() == "HEAD", signed_region(&request));
        let to_send = request.body().content_length() as u64;
        let answer = if to_send == 0 {
            self.reading.execute(request).await?
        } else {
            let longest = self.silence + Duration::from_secs(to_send / SLOWEST_SENT);
            let late = |_| HttpError::new(HttpErrorKind::Timeout, Silence(longest));
            let sent = timeout(longest, self.sending.execute(request)).await;
            let (parts, body) = sent.map_err(late)??.into_parts();
            // What comes back is small, but may take its time: parts are being joined.
            let body = timeout(longest.max(LONGEST_JOINING), body.bytes()).await;
            HttpResponse::from_parts(parts, body.map_err(late)??.into())
        };
        if !is_listing || !answer.status().is_success() {
            return Ok(with_headers_said(answer, is_head, region.as_deref()));
        }
        let (head, body) = answer.into_parts();
        let body = body.bytes().await?;
        let odd = self.counters.odd_keys.lock();
        let odd = &mut *odd.unwrap_or_else(PoisonError::into_inner);
        let body = without_odd_keys(&body, odd).map_or(body, Into::into);
        Ok(HttpResponse::from_parts(head, body.into()))
    }
}

/// The region that a request to S3 was signed for.
fn signed_region(request: &HttpRequest) -> Option<String> {
    let signature = request.headers().get("authorization")?.to_str().ok()?;
    let (_, scope) = signature.split_once("Credential=")?;
    // KEY/DATE/REGION/s3/aws4_request
    scope.split('/').nth(2).map(str::to_owned)
}

/// Stores say some things in headers alone, and their clients keep the body only: the region of a
/// bucket, and whatever a refused HEAD means. Such an answer becomes one whose body says it.
fn with_headers_said(answer: HttpResponse, is_head: bool, signed: Option<&str>) -> HttpResponse {
    let status = answer.status();
    if status.is_success() {
        return answer;
    }
    let header = |name: &str| answer.headers().get(name)?.to_str().ok().map(str::to_owned);
    let region = header("x-amz-bucket-region");
    let elsewhere = match status.as_u16() {
        301 | 302 | 307 | 308 => header("location").is_none(),
        400 => signed.is_some() && region.is_some() && region.as_deref() != signed,
        _ => false,
    };
    let body = match (region, header("x-ms-error-code")) {
        (Some(region), _) if elsewhere => {
            let signed = signed.unwrap_or("none");
            format!(
                "<Error><Code>PermanentRedirect</Code><Message>the bucket lies in {region}, the request is signed for \
                 {signed}</Message><Region>{region}</Region></Error>"
            )
        }
        (_, Some(code)) if is_head => format!("<Error><Code>{code}</Code></Error>"),
        _ => return answer,
    };
    let (mut parts, _) = answer.into_parts();
    if elsewhere {
        // The client reads no body of a redirect.
        parts.status = 400.try_into().unwrap_or(status);
    }
    HttpResponse::from_parts(parts, body.into())
}
