//! A run's numbers for Prometheus: a small HTTP server with one page, on a thread of its own. It
//! reads shared counters alone, so it answers while the run waits, and a client that is slow or
//! odd costs the run nothing.
mod live;
mod page;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus_client::encoding::prometheus_text;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{sleep, timeout};

pub(crate) use live::Live;
use page::Page;

/// Clients at once; more are closed at once.
const MOST_CLIENTS: usize = 64;
/// Longest time from a client's coming to the end of its answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most bytes of a request's head, the least that hyper takes.
const MOST_HEAD: usize = 8 << 10;
/// Pause where no client can be taken, as where too many files are open.
const PAUSE: Duration = Duration::from_millis(100);

/// The metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExporterError {
    #[error(
        "cannot serve metrics at {address} (--metrics-addr)\ntip: stop what listens there, or \
         give another port; port 0 takes a free one"
    )]
    InUse {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error(
        "cannot serve metrics at {address} (--metrics-addr)\ntip: give an address of this \
         machine, as 127.0.0.1, or 0.0.0.0 for all of its addresses, and a port from 1024 on"
    )]
    Bind {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("cannot start the thread that serves metrics")]
    Start(#[source] std::io::Error),
}

/// Serves a run's numbers until it is dropped.
#[derive(Debug)]
pub(crate) struct Exporter {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Exporter {
    /// Listens at `address`, where port 0 is any free one, and answers from now on.
    pub(crate) fn start(address: SocketAddr, live: Live) -> Result<Self, ExporterError> {
        let listener = std::net::TcpListener::bind(address).map_err(|source| {
            if source.kind() == std::io::ErrorKind::AddrInUse {
                ExporterError::InUse { address, source }
            } else {
                ExporterError::Bind { address, source }
            }
        })?;
        listener
            .set_nonblocking(true)
            .map_err(ExporterError::Start)?;
        let address = listener.local_addr().map_err(ExporterError::Start)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(ExporterError::Start)?;
        let (stop, stopped) = oneshot::channel();
        let page = Arc::new(Page::new(live));
        let thread = std::thread::Builder::new()
            .name("nepa-exporter".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    let served = async {
                        match TcpListener::from_std(listener) {
                            Ok(listener) => serve(listener, page).await,
                            Err(error) => tracing::warn!("cannot serve metrics: {error}"),
                        }
                    };
                    tokio::select! {
                        () = served => {}
                        _ = stopped => {}
                    }
                });
            })
            .map_err(ExporterError::Start)?;
        Ok(Self {
            address,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where the page is.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/metrics", self.address)
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        // Its thread ends at that, whatever its clients do.
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Takes clients for ever.
async fn serve(listener: TcpListener, page: Arc<Page>) {
    let clients = Arc::new(Semaphore::new(MOST_CLIENTS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        if let Ok(client) = Arc::clone(&clients).try_acquire_owned() {
            let page = Arc::clone(&page);
            tokio::spawn(async move {
                // Who is too slow is cut off; neither that nor an odd request concerns the run.
                let _ = timeout(PATIENCE, answer(stream, &page)).await;
                drop(client);
            });
        }
    }
}

/// Answers one request.
async fn answer(stream: TcpStream, page: &Page) -> hyper::Result<()> {
    let service = service_fn(|request: Request<Incoming>| {
        std::future::ready(Ok::<_, Infallible>(respond(&request, page)))
    });
    http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(MOST_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

fn respond(request: &Request<Incoming>, page: &Page) -> Response<String> {
    let plain = |status, text: &str| {
        let mut response = Response::new(text.to_owned());
        *response.status_mut() = status;
        let kind = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    };
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "the metrics are at /metrics\n");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "metrics are only read\n");
        let allowed = HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(ALLOW, allowed);
        return response;
    }
    let Ok(text) = page.text() else {
        return plain(
            StatusCode::INTERNAL_SERVER_ERROR,
            "a number cannot be written\n",
        );
    };
    let mut response = plain(StatusCode::OK, &text);
    let kind = HeaderValue::from_static(prometheus_text::CONTENT_TYPE);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::time::Instant;

    use super::*;

    /// What the exporter says to these bytes.
    fn ask(exporter: &Exporter, request: &str) -> String {
        let mut stream = std::net::TcpStream::connect(exporter.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        // What is refused may be reset before all is sent.
        let _ = stream.write_all(request.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    fn get(exporter: &Exporter) -> String {
        ask(exporter, "GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n")
    }

    #[test]
    fn one_page_is_read_and_all_else_is_refused() {
        let exporter = Exporter::start(([127, 0, 0, 1], 0).into(), Live::default()).unwrap();
        let page = get(&exporter);
        let (head, body) = page.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        let head = head.to_lowercase();
        assert!(head.contains("content-type: text/plain; version=0.0.4"));
        assert!(head.contains("connection: close"), "{head}");
        assert!(body.contains("\nnepa_step 0\n"), "{body}");
        for (request, status) in [
            ("GET / HTTP/1.1\r\nHost: here\r\n\r\n", "404"),
            ("GET /metrics/x HTTP/1.1\r\nHost: here\r\n\r\n", "404"),
            ("POST /metrics HTTP/1.1\r\nHost: here\r\n\r\n", "405"),
            ("HEAD /metrics HTTP/1.1\r\nHost: here\r\n\r\n", "200"),
            ("nonsense\r\n\r\n", "400"),
        ] {
            let said = ask(&exporter, request);
            let status = format!("HTTP/1.1 {status}");
            assert!(said.starts_with(&status), "{request}: {said}");
            let has_body = !said.ends_with("\r\n\r\n");
            assert_eq!(
                has_body,
                status.contains("40") && !request.contains("nonsense")
            );
        }
        let endless = format!("GET /metrics HTTP/1.1\r\nx: {}", "x".repeat(1 << 20));
        assert!(!ask(&exporter, &endless).contains(" 200 "));
    }

    #[test]
    fn clients_that_say_nothing_hold_up_nobody_and_are_cut_off() {
        let exporter = Exporter::start(([127, 0, 0, 1], 0).into(), Live::default()).unwrap();
        let silent = [(); MOST_CLIENTS - 1]
            .map(|()| std::net::TcpStream::connect(exporter.address).unwrap());
        let begun = Instant::now();
        assert!(get(&exporter).starts_with("HTTP/1.1 200"));
        assert!(begun.elapsed() < PATIENCE / 2);
        // One more, and the next is closed without a word.
        let _last = std::net::TcpStream::connect(exporter.address).unwrap();
        assert_eq!(get(&exporter), "");
        for mut stream in silent {
            let all = Duration::from_mins(1);
            stream.set_read_timeout(Some(all)).unwrap();
            assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
        }
        assert!(get(&exporter).starts_with("HTTP/1.1 200"));
    }

    #[test]
    fn it_ends_at_once_and_frees_its_port() {
        let exporter = Exporter::start(([127, 0, 0, 1], 0).into(), Live::default()).unwrap();
        let address = exporter.address;
        let _silent = std::net::TcpStream::connect(address).unwrap();
        let taken = Exporter::start(address, Live::default()).unwrap_err();
        assert!(matches!(taken, ExporterError::InUse { .. }), "{taken}");
        let begun = Instant::now();
        drop(exporter);
        assert!(begun.elapsed() < PATIENCE / 2);
        assert!(std::net::TcpStream::connect(address).is_err());
    }
}
