//! Connections, the log, and the faults that concern a whole answer.
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::{S3Auth, SecretKey};
use s3s::dto::StreamingBlob;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, HttpResponse, S3Result, s3_error};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::faults::{BodyFaults, Fault};
use super::{Gate, LoggedRequest, Options, Shared, lock};

/// The connection is to be closed without an answer.
#[derive(Debug)]
struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the plan closes this connection")
    }
}

impl std::error::Error for Cut {}

/// A request that is being answered; over when its body has been sent, or its client is gone.
struct InFlight {
    shared: Arc<Shared>,
    _slot: OwnedSemaphorePermit,
}

impl InFlight {
    fn new(shared: Arc<Shared>, slot: OwnedSemaphorePermit) -> Self {
        shared.begun.fetch_add(1, SeqCst);
        let in_flight = shared.in_flight.fetch_add(1, SeqCst) + 1;
        shared.most_in_flight.fetch_max(in_flight, SeqCst);
        Self {
            shared,
            _slot: slot,
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.shared.in_flight.fetch_sub(1, SeqCst);
    }
}

/// Whose requests are answered.
struct Keys(Arc<Shared>);

#[async_trait::async_trait]
impl S3Auth for Keys {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let keys = lock(&self.0.keys);
        let number = keys.iter().rposition(|(key, _)| key == access_key);
        match number {
            None => Err(s3_error!(InvalidAccessKeyId)),
            Some(number) if number + 1 < keys.len() => Err(s3_error!(ExpiredToken)),
            Some(number) => Ok(keys[number].1.clone().into()),
        }
    }
}

/// Serves until the runtime ends.
pub(super) async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut builder = S3ServiceBuilder::new(shared.buckets.clone());
    builder.set_auth(Keys(Arc::clone(&shared)));
    let service = builder.build();
    let max_connections = shared.options.max_connections;
    let slots = Arc::new(Semaphore::new(
        max_connections.unwrap_or(Semaphore::MAX_PERMITS),
    ));
    let Ok(address) = listener.local_addr() else {
        return;
    };
    let mut gate = shared.gate.subscribe();
    let (mut listener, mut connections) = (Some(listener), JoinSet::new());
    loop {
        let is_closed = *gate.borrow_and_update() == Gate::Closed;
        if is_closed {
            listener = None;
            connections.shutdown().await;
            if gate.changed().await.is_err() {
                return;
            }
            continue;
        }
        let open = match listener.take() {
            Some(open) => open,
            None => match TcpListener::bind(address).await {
                Ok(open) => open,
                Err(_) => continue,
            },
        };
        let accepted = tokio::select! {
            accepted = open.accept() => Some(accepted),
            _ = gate.changed() => None,
        };
        listener = Some(open);
        let Some(Ok((socket, _))) = accepted else {
            continue;
        };
        shared.connections.fetch_add(1, Relaxed);
        // Without it, small answers wait for the client's delayed acknowledgement (40 ms).
        let _ = socket.set_nodelay(true);
        let (shared, service, slots) = (Arc::clone(&shared), service.clone(), Arc::clone(&slots));
        connections.spawn(async move {
            let answer = service_fn(move |request| {
                answer(
                    request,
                    Arc::clone(&shared),
                    service.clone(),
                    Arc::clone(&slots),
                )
            });
            // An error is a client that went away, or a connection that the plan has cut.
            let _ = Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(socket), answer)
                .await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(
    mut request: http::Request<hyper::body::Incoming>,
    shared: Arc<Shared>,
    service: S3Service,
    slots: Arc<Semaphore>,
) -> Result<HttpResponse, Cut> {
    let slot = slots.acquire_owned().await.map_err(|_| Cut)?;
    let slot = InFlight::new(Arc::clone(&shared), slot);
    let mut gate = shared.gate.subscribe();
    if gate.wait_for(|gate| *gate != Gate::Frozen).await.is_err() {
        return Err(Cut);
    }
    let mut entry = entry(&request);
    let faults = lock(&shared.plan).faults_of(&entry.method, &entry.key);
    let mut latency = shared.options.latency;
    let mut body_faults = BodyFaults::default();
    let (mut refused, mut is_lost) = (None, false);
    for fault in faults {
        match fault {
            Fault::Latency(more) => latency += more,
            Fault::Unavailable => {
                let body = error_body("SlowDown", "Please reduce your request rate.");
                refused = Some((503, Vec::new(), body));
            }
            Fault::Forbidden => {
                refused = Some((403, Vec::new(), error_body("AccessDenied", "Access Denied")));
            }
            Fault::Reset => refused = Some((0, Vec::new(), String::new())),
            Fault::Answer(status, headers, body) => refused = Some((status, headers, body)),
            Fault::AnswerLost => is_lost = true,
            Fault::Truncate(bytes) => body_faults.truncate = Some(bytes),
            Fault::Stall(bytes) => body_faults.stall = Some(bytes),
            Fault::WholeObject => body_faults.whole_object = true,
            Fault::Replace(bytes) => shared.buckets.put(&entry.bucket, &entry.key, bytes),
        }
    }
    tokio::time::sleep(latency).await;
    let response = match refused {
        Some((0, _, _)) => None,
        Some((status, headers, body)) => Some(refusal(status, headers, body)),
        None => {
            request.extensions_mut().insert(body_faults);
            let answer = service.call(request.map(Body::from)).await.ok();
            answer.filter(|_| !is_lost)
        }
    };
    entry.status = response
        .as_ref()
        .map_or(0, |response| response.status().as_u16());
    lock(&shared.log).push(entry);
    // The slot is taken until the body has been sent.
    response.ok_or(Cut).map(|response| {
        response.map(|body| {
            let length = http_body::Body::size_hint(&body).exact();
            let stream = body.map(move |part| {
                let _until_sent = &slot;
                part.map_err(|error| std::io::Error::other(error.to_string()))
            });
            let Options {
                bytes_per_s,
                line_bytes_per_s,
                ..
            } = shared.options;
            match (length, bytes_per_s, line_bytes_per_s) {
                (Some(0), ..) => Body::empty(),
                (_, None, None) => Body::from(StreamingBlob::wrap(stream)),
                _ => {
                    let shared = Arc::clone(&shared);
                    Body::from(StreamingBlob::wrap(Box::pin(paced(stream, shared))))
                }
            }
        })
    })
}

/// Pieces of a body, none earlier than the bytes a second of one answer and of all allow.
fn paced(
    stream: impl Stream<Item = std::io::Result<Bytes>> + Send + Sync,
    shared: Arc<Shared>,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send + Sync {
    let start = tokio::time::Instant::now();
    let pieces = stream.flat_map(|part| {
        let pieces: Vec<std::io::Result<Bytes>> = match part {
            Ok(bytes) => (0..bytes.len())
                .step_by(PIECE)
                .map(|from| Ok(bytes.slice(from..(from + PIECE).min(bytes.len()))))
                .collect(),
            Err(error) => vec![Err(error)],
        };
        futures::stream::iter(pieces)
    });
    let timed = pieces.scan(0, |sent, piece: std::io::Result<Bytes>| {
        *sent += piece.as_ref().map_or(0, Bytes::len);
        std::future::ready(Some((*sent, piece)))
    });
    timed.then(move |(sent, piece)| {
        let after = |bytes: usize, rate: f64| Duration::from_secs_f64(bytes as f64 / rate);
        let mut due = start;
        if let Some(rate) = shared.options.bytes_per_s {
            due += after(sent, rate);
        }
        if let Some(rate) = shared.options.line_bytes_per_s {
            let mut free = lock(&shared.line_free);
            let bytes = piece.as_ref().map_or(0, Bytes::len);
            *free = (*free).max(tokio::time::Instant::now()) + after(bytes, rate);
            due = due.max(*free);
        }
        async move {
            tokio::time::sleep_until(due).await;
            piece
        }
    })
}

/// Bytes that a paced answer sends at once.
const PIECE: usize = 64 << 10;

/// What S3 says of an error.
fn error_body(code: &str, message: &str) -> String {
    format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>")
}

fn refusal(status: u16, headers: Vec<(&'static str, String)>, body: String) -> HttpResponse {
    let start = http::Response::builder()
        .status(status)
        .header("content-type", "application/xml")
        .header("content-length", body.len());
    headers
        .into_iter()
        .fold(start, |answer, (name, value)| answer.header(name, value))
        .body(Body::from(Bytes::from(body)))
        .expect("a response of sound parts")
}

fn entry(request: &http::Request<hyper::body::Incoming>) -> LoggedRequest {
    let path = request.uri().path().trim_start_matches('/');
    let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
    let header = |name| {
        request
            .headers()
            .get(name)
            .and_then(|value: &http::HeaderValue| value.to_str().ok())
    };
    let range = header("range").and_then(|range| {
        let (start, end) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some(start.parse().ok()?..end.parse::<u64>().ok()? + 1)
    });
    LoggedRequest {
        method: request.method().to_string(),
        bucket: bucket.to_owned(),
        key: percent_decode(key),
        range,
        if_match: header("if-match").map(str::to_owned),
        status: 0,
    }
}

fn percent_decode(text: &str) -> String {
    url::form_urlencoded::parse(text.replace('+', "%2B").as_bytes())
        .next()
        .map_or_else(String::new, |(key, _)| key.into_owned())
}
