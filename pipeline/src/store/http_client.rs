//! Counts HTTP requests below the store's retries, which the store itself does not tell.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};

/// What went over the wire.
#[derive(Debug, Default)]
pub struct HttpCounters {
    /// Requests with a `Range` header, repeated ones included.
    pub range_attempts: AtomicU64,
}

/// The store's usual HTTP client, counted.
#[derive(Debug, Clone, Default)]
pub struct CountingConnector {
    /// The counters, shared by all clients of this connector.
    pub counters: Arc<HttpCounters>,
}

impl HttpConnector for CountingConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(CountingClient {
            client,
            counters: Arc::clone(&self.counters),
        }))
    }
}

#[derive(Debug)]
struct CountingClient {
    client: HttpClient,
    counters: Arc<HttpCounters>,
}

#[async_trait::async_trait]
impl HttpService for CountingClient {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if request.headers().contains_key("range") {
            self.counters.range_attempts.fetch_add(1, Ordering::Relaxed);
        }
        self.client.execute(request).await
    }
}
