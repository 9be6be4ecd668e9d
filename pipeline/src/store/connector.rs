//! The HTTP client of one store: counted, with the certificates that the settings name, the user of
//! a web URL, and S3's requests signed again where the store says that the credentials have
//! expired.
use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{Method, StatusCode};
use object_store::aws::AwsAuthorizer;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService,
};
use object_store::{Certificate, ClientOptions, HeaderMap, HeaderValue};

use super::aws::Lender;
use super::{CountingConnector, Location, Provider, StoreOptions, tls};
use crate::StoreError;

/// Makes the clients of one store.
#[derive(Debug, Clone)]
pub(super) struct StoreConnector {
    counting: CountingConnector,
    certificates: Vec<Certificate>,
    basic_auth: Option<HeaderValue>,
    /// Who lends S3's credentials.
    pub(super) lender: Option<Arc<Lender>>,
}

impl StoreConnector {
    pub(super) fn new(
        location: &Location,
        options: &StoreOptions,
        counting: &CountingConnector,
    ) -> Result<Self, StoreError> {
        let certificates = match location.provider {
            Provider::Local => Vec::new(),
            _ => tls::certificates(options).map_err(|bad| StoreError::CertificateFile {
                url: location.display(),
                variable: bad.variable,
                file: bad.file,
                source: bad.source,
            })?,
        };
        let basic_auth = location.basic_auth.as_ref().map(|text| {
            let mut header =
                HeaderValue::from_str(&format!("Basic {text}")).expect("base64 is visible ASCII");
            header.set_sensitive(true);
            header
        });
        Ok(Self {
            counting: counting.clone(),
            certificates,
            basic_auth,
            lender: None,
        })
    }
}

impl HttpConnector for StoreConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let certificates = self.certificates.iter().cloned();
        let mut options = certificates.fold(options.clone(), ClientOptions::with_root_certificate);
        if let Some(header) = &self.basic_auth {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, header.clone())]);
            options = options.with_default_headers(headers);
        }
        let client = self.counting.connect(&options)?;
        Ok(match &self.lender {
            Some(lender) => HttpClient::new(Renewing {
                client,
                lender: Arc::clone(lender),
            }),
            None => client,
        })
    }
}

/// Sends a request once more, with other credentials, where the store says that those have expired.
#[derive(Debug)]
struct Renewing {
    client: HttpClient,
    lender: Arc<Lender>,
}

/// What S3 and others that speak its protocol say of credentials that were good once.
const EXPIRED: [&str; 6] = [
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "TokenExpired",
];

#[async_trait::async_trait]
impl HttpService for Renewing {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let again = request.clone();
        let response = match self.client.execute(request).await {
            Ok(response) => response,
            // A store that refuses credentials may close the connection before it has read what is
            // sent, and then its answer is lost.
            Err(error) if again.body().content_length() > 0 => {
                return match self.signed_again(again, true).await {
                    Some(again) => self.client.execute(again).await,
                    None => Err(error),
                };
            }
            Err(error) => return Err(error),
        };
        if !matches!(
            response.status(),
            StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
        ) {
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        let body = body.bytes().await?;
        let text = String::from_utf8_lossy(&body);
        // The answer to HEAD has no body; its status for an expired token is another than for a
        // refusal.
        let expired = EXPIRED
            .iter()
            .any(|code| text.contains(&format!("<Code>{code}")))
            || (again.method() == Method::HEAD && parts.status == StatusCode::BAD_REQUEST);
        if expired && let Some(again) = self.signed_again(again, false).await {
            return self.client.execute(again).await;
        }
        Ok(HttpResponse::from_parts(parts, body.into()))
    }
}

impl Renewing {
    /// The request with a signature by other credentials, if there are any.
    async fn signed_again(
        &self,
        mut request: HttpRequest,
        is_guessed: bool,
    ) -> Option<HttpRequest> {
        let headers = request.headers_mut();
        // S3 Express has tokens of its own, which the store renews.
        if headers.contains_key("x-amz-s3session-token") {
            return None;
        }
        let signature = headers.remove(AUTHORIZATION)?;
        let token = headers.remove("x-amz-security-token");
        let digest = headers.remove("x-amz-content-sha256")?;
        // AWS4-HMAC-SHA256 Credential=ID/20260101/us-east-1/s3/aws4_request, ...
        let (_, scope) = signature.to_str().ok()?.split_once("Credential=")?;
        let mut scope = scope.split(['/', ',']);
        let (id, _date, region, service) =
            (scope.next()?, scope.next()?, scope.next()?, scope.next()?);
        let token = token.as_ref().and_then(|token| token.to_str().ok());
        let credential = self.lender.renewed(id, token, is_guessed).await?;
        let digest = from_hex(digest.as_bytes());
        // What is no digest says that the body is not signed.
        let signer =
            AwsAuthorizer::new(&credential, service, region).with_sign_payload(digest.is_some());
        signer.try_authorize(&mut request, digest.as_deref()).ok()?;
        Some(request)
    }
}

fn from_hex(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    let pairs = text.chunks_exact(2);
    (text.len() == 64).then_some(())?;
    pairs
        .map(|pair| Some((digit(pair[0])? << 4) | digit(pair[1])?))
        .collect()
}
