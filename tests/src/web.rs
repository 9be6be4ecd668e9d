//! A web server of one function, for what stands beside a store: services that hand out credentials, proxies, plain
//! objects. One thread a connection, one request each.
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

/// What was asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// HTTP method.
    pub method: String,
    /// Path and query, as sent; a whole URL where the server is used as a proxy.
    pub target: String,
    /// Head lines, `Name: value`.
    pub headers: Vec<String>,
    /// The body.
    pub body: String,
}

impl Request {
    /// The value of a header, if it is there.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// Status and body.
pub type Answer = (u16, Vec<u8>);

/// A running server; its threads end with the process.
#[derive(Debug, Clone, Copy)]
pub struct WebServer(SocketAddr);

impl WebServer {
    /// Starts one that answers by `answer`.
    ///
    /// # Panics
    ///
    /// If there is no free port.
    pub fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let answer = Arc::clone(&answer);
                // A client that goes away is no fault.
                std::thread::spawn(move || serve(stream, &*answer).ok());
            }
        });
        Self(address)
    }

    /// One that serves one object under every path, by ranges, to whoever `may` have it.
    pub fn of_object(
        bytes: Vec<u8>,
        may: impl Fn(&Request) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self::start(move |request| {
            if !may(request) {
                return (403, format!("refused: {request:?}").into_bytes());
            }
            (200, bytes.clone())
        })
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.0)
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        self.0.to_string()
    }
}

fn serve(mut stream: TcpStream, answer: &dyn Fn(&Request) -> Answer) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_owned());
    }
    if lines.is_empty() {
        return Ok(());
    }
    let first = lines.remove(0);
    let mut words = first.split(' ').map(str::to_owned);
    let mut request = Request {
        method: words.next().unwrap_or_default(),
        target: words.next().unwrap_or_default(),
        headers: lines,
        body: String::new(),
    };
    let length = request
        .header("content-length")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    request.body = String::from_utf8_lossy(&body).into_owned();
    let (mut status, mut body) = answer(&request);
    let mut headers = String::new();
    if status == 200
        && let Some(range) = request
            .header("range")
            .and_then(|range| range.strip_prefix("bytes="))
        && let Some((start, end)) = range.split_once('-')
    {
        let (size, start) = (body.len(), start.parse().unwrap_or(0));
        let end = end.parse().map_or(size, |end: usize| size.min(end + 1));
        body = body[start..end].to_vec();
        status = 206;
        headers = format!("Content-Range: bytes {start}-{}/{size}\r\n", end - 1);
    }
    let head = format!(
        "HTTP/1.1 {status} -\r\nContent-Length: {}\r\nETag: \"1\"\r\nConnection: close\r\n\
         Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n{headers}\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    if request.method == "HEAD" {
        return Ok(());
    }
    stream.write_all(&body)
}
