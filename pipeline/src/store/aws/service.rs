//! Fetches credentials: from programs, the services beside a container or a machine, the security
//! token service, and single sign-on.
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use object_store::ClientOptions;
use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::client::{
    HttpClient, HttpConnector, HttpRequest, HttpRequestBody, ReqwestConnector,
};
use serde::Deserialize;

use super::chain::{ContainerToken, Role, SingleSignOn, Source};
use super::keys::{CredentialError, Keys, Lent};
use crate::store::StoreCause;
use crate::store::{StoreOptions, redact, secrets, tls};

/// A request that gets no answer, or a passing failure, is sent so often.
const ATTEMPTS: u32 = 3;
/// Within so long a service has to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Within so long a program has to end.
const PROCESS_TIMEOUT: Duration = Duration::from_mins(1);
/// A token is renewed if it holds for less.
const TOKEN_LEFT: Duration = Duration::from_mins(1);

/// Credentials from `source`.
pub(super) async fn lend(source: &Source, options: &StoreOptions) -> Result<Lent, CredentialError> {
    match source {
        Source::Keys(keys) => Ok(Lent {
            credential: Arc::clone(&keys.0),
            expires: None,
        }),
        Source::Process { profile, command } => process(profile, command).await,
        Source::Role { role, with } => {
            let with = Box::pin(lend(with, options)).await?;
            assume(role, Authority::Keys(&with.credential), options).await
        }
        Source::WebIdentity { role, token_file } => {
            let token = read_token(token_file)?;
            assume(role, Authority::Token(&token), options).await
        }
        Source::SingleSignOn(sign_on) => single_sign_on(sign_on, options).await,
        Source::Container { url, token } => container(url, token, options).await,
        Source::Machine { endpoint } => machine(endpoint, options).await,
    }
}

/// Keys as JSON, under the names that programs, containers and machines use.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct JsonKeys {
    access_key_id: String,
    secret_access_key: String,
    #[serde(alias = "SessionToken")]
    token: Option<String>,
    expiration: Option<DateTime<Utc>>,
}

impl JsonKeys {
    fn lent(self, place: &str) -> Result<Lent, CredentialError> {
        let keys = Keys::new(
            &self.access_key_id,
            &self.secret_access_key,
            self.token.as_deref(),
            place,
        )?;
        Ok(Lent {
            credential: keys.0,
            expires: self.expiration,
        })
    }
}

fn read_token(file: &str) -> Result<String, CredentialError> {
    let token = std::fs::read_to_string(file).map_err(|source| CredentialError::TokenFile {
        file: file.to_owned(),
        source: StoreCause::new(&source),
    })?;
    let token = token.trim().to_owned();
    secrets::remember(&token);
    Ok(token)
}

async fn process(profile: &str, command: &str) -> Result<Lent, CredentialError> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let shell = command.to_owned();
    // A thread of its own: whoever waits for the program can stop waiting.
    std::thread::spawn(move || {
        let output = std::process::Command::new("sh")
            .args(["-c", &shell])
            .stdin(std::process::Stdio::null())
            .output();
        // Nobody may be waiting any more.
        let _ = sender.send(output);
    });
    let failed = |status: String, stderr: String| CredentialError::Process {
        profile: profile.to_owned(),
        status,
        stderr,
    };
    let output = match tokio::time::timeout(PROCESS_TIMEOUT, receiver).await {
        Ok(Ok(Ok(output))) => output,
        Ok(Ok(Err(error))) => return Err(failed(error.to_string(), String::new())),
        Ok(Err(_)) | Err(_) => {
            let status = format!("no end within {} s", PROCESS_TIMEOUT.as_secs());
            return Err(failed(status, String::new()));
        }
    };
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let last = stderr.lines().rev().find(|line| !line.trim().is_empty());
        return Err(failed(
            output.status.to_string(),
            redact(last.unwrap_or_default().trim()),
        ));
    }
    let bad = || CredentialError::ProcessOutput {
        profile: profile.to_owned(),
    };
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).map_err(|_| bad())?;
    if json.get("Version").and_then(serde_json::Value::as_u64) != Some(1) {
        return Err(bad());
    }
    let keys: JsonKeys = serde_json::from_value(json).map_err(|_| bad())?;
    keys.lent(&format!("the output of credential_process of {profile:?}"))
}

async fn container(
    url: &str,
    token: &ContainerToken,
    options: &StoreOptions,
) -> Result<Lent, CredentialError> {
    let service = format!("the container's credentials service ({})", redact(url));
    let token = match token {
        ContainerToken::None => None,
        ContainerToken::Value(token) => Some(token.0.trim().to_owned()),
        ContainerToken::File(file) => Some(read_token(file)?),
    };
    let mut headers = HeaderMap::new();
    if let Some(token) = &token {
        headers.insert(http::header::AUTHORIZATION, header(token, &service)?);
    }
    let client = Client::near(service, options)?;
    let answer = client.send(Method::GET, url, headers, "", None).await?;
    client.json::<JsonKeys>(&answer)?.lent(&client.service)
}

async fn machine(endpoint: &str, options: &StoreOptions) -> Result<Lent, CredentialError> {
    let service = format!("the machine's metadata service ({})", redact(endpoint));
    let name = |name| HeaderName::from_static(name);
    let lifetime = (
        name("x-aws-ec2-metadata-token-ttl-seconds"),
        HeaderValue::from_static("21600"),
    );
    let client = Client::near(service, options)?;
    let url = format!("{endpoint}/latest/api/token");
    let token = client
        .send(
            Method::PUT,
            &url,
            HeaderMap::from_iter([lifetime]),
            "",
            None,
        )
        .await;
    let headers = match token {
        Ok(token) => {
            let token = header(token.trim(), &client.service)?;
            HeaderMap::from_iter([(name("x-aws-ec2-metadata-token"), token)])
        }
        // Older services know no tokens; whoever has them says so.
        Err(CredentialError::Refused { status: 403, .. })
            if options
                .get("AWS_IMDSV1_FALLBACK")
                .is_some_and(|on| on.eq_ignore_ascii_case("true")) =>
        {
            HeaderMap::new()
        }
        Err(error) => return Err(error),
    };
    let roles = format!("{endpoint}/latest/meta-data/iam/security-credentials/");
    let role = client
        .send(Method::GET, &roles, headers.clone(), "", None)
        .await?;
    let url = format!("{roles}{}", role.trim());
    let answer = client.send(Method::GET, &url, headers, "", None).await?;
    client.json::<JsonKeys>(&answer)?.lent(&client.service)
}

/// What lets one assume a role.
enum Authority<'a> {
    Keys(&'a AwsCredential),
    Token(&'a str),
}

#[derive(Deserialize)]
struct RoleAnswer {
    #[serde(rename = "AssumeRoleResult", alias = "AssumeRoleWithWebIdentityResult")]
    result: RoleResult,
}

#[derive(Deserialize)]
struct RoleResult {
    #[serde(rename = "Credentials")]
    credentials: JsonKeys,
}

async fn assume(
    role: &Role,
    authority: Authority<'_>,
    options: &StoreOptions,
) -> Result<Lent, CredentialError> {
    let service = format!("the security token service ({})", redact(&role.endpoint));
    let client = Client::far(service, options)?;
    let (action, web_token, signed) = match authority {
        Authority::Keys(keys) => ("AssumeRole", None, Some((keys, role.region.as_str()))),
        Authority::Token(token) => ("AssumeRoleWithWebIdentity", Some(token), None),
    };
    let fields = [
        ("Action", Some(action)),
        ("Version", Some("2011-06-15")),
        ("RoleArn", Some(role.arn.as_str())),
        ("RoleSessionName", Some(role.session_name.as_str())),
        ("ExternalId", role.external_id.as_deref()),
        ("DurationSeconds", role.duration_seconds.as_deref()),
        ("WebIdentityToken", web_token),
    ];
    let fields = fields
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)));
    let form = ::url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(fields)
        .finish();
    let content = HeaderValue::from_static("application/x-www-form-urlencoded");
    let headers = HeaderMap::from_iter([(http::header::CONTENT_TYPE, content)]);
    let url = format!("{}/", role.endpoint);
    let answer = client
        .send(Method::POST, &url, headers, &form, signed)
        .await?;
    let answer: RoleAnswer = quick_xml::de::from_str(&answer).map_err(|_| client.bad_answer())?;
    answer.result.credentials.lent(&client.service)
}

/// What `aws sso login` leaves behind, and refreshes.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SignOnToken {
    start_url: String,
    access_token: String,
    expires_at: String,
    refresh_token: Option<String>,
    client_id: Option<String>,
    client_secret: Option<String>,
}

impl SignOnToken {
    /// Until when it holds.
    fn expires(&self) -> Option<DateTime<Utc>> {
        self.expires_at.replace("UTC", "Z").parse().ok()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Refreshed {
    access_token: String,
    expires_in: i64,
    refresh_token: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SignOnAnswer {
    role_credentials: SignOnKeys,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SignOnKeys {
    access_key_id: String,
    secret_access_key: String,
    session_token: Option<String>,
    /// Milliseconds since 1970.
    expiration: i64,
}

async fn single_sign_on(
    sign_on: &SingleSignOn,
    options: &StoreOptions,
) -> Result<Lent, CredentialError> {
    let not_signed_on = || CredentialError::NotSignedOn {
        profile: sign_on.profile.clone(),
    };
    let (file, token) = newest_token(sign_on).ok_or_else(not_signed_on)?;
    let holds = token
        .expires()
        .is_some_and(|at| at > Utc::now() + TOKEN_LEFT);
    let access_token = if holds {
        token.access_token
    } else {
        refresh(sign_on, &file, token, options).await?
    };
    secrets::remember(&access_token);
    let service = format!("single sign-on ({})", redact(&sign_on.portal));
    let client = Client::far(service, options)?;
    let query = ::url::form_urlencoded::Serializer::new(String::new())
        .append_pair("account_id", &sign_on.account_id)
        .append_pair("role_name", &sign_on.role_name)
        .finish();
    let url = format!("{}/federation/credentials?{query}", sign_on.portal);
    let token = header(&access_token, &client.service)?;
    let headers =
        HeaderMap::from_iter([(HeaderName::from_static("x-amz-sso_bearer_token"), token)]);
    let answer = match client.send(Method::GET, &url, headers, "", None).await {
        Err(CredentialError::Refused { status: 401, .. }) => return Err(not_signed_on()),
        other => other?,
    };
    let keys = client.json::<SignOnAnswer>(&answer)?.role_credentials;
    JsonKeys {
        access_key_id: keys.access_key_id,
        secret_access_key: keys.secret_access_key,
        token: keys.session_token,
        expiration: DateTime::from_timestamp_millis(keys.expiration),
    }
    .lent(&client.service)
}

/// The token of this sign-on that holds the longest, and its file.
fn newest_token(sign_on: &SingleSignOn) -> Option<(std::path::PathBuf, SignOnToken)> {
    let files = std::fs::read_dir(&sign_on.cache)
        .ok()?
        .flatten()
        .map(|entry| entry.path());
    let tokens = files.filter_map(|file| {
        let token: SignOnToken = serde_json::from_slice(&std::fs::read(&file).ok()?).ok()?;
        let same = token.start_url.trim_end_matches('/') == sign_on.start_url.trim_end_matches('/');
        same.then_some((file, token))
    });
    tokens.max_by_key(|(_, token)| token.expires())
}

/// Renews a token as Amazon's own tools do, in their file, as the old one is of no use any more.
async fn refresh(
    sign_on: &SingleSignOn,
    file: &std::path::Path,
    token: SignOnToken,
    options: &StoreOptions,
) -> Result<String, CredentialError> {
    let not_signed_on = || CredentialError::NotSignedOn {
        profile: sign_on.profile.clone(),
    };
    let (Some(refresh_token), Some(id), Some(secret)) =
        (token.refresh_token, token.client_id, token.client_secret)
    else {
        return Err(not_signed_on());
    };
    secrets::remember(&refresh_token);
    secrets::remember(&secret);
    let body = serde_json::json!({
        "grantType": "refresh_token", "clientId": id, "clientSecret": secret, "refreshToken": refresh_token
    });
    let service = format!("single sign-on ({})", redact(&sign_on.oidc));
    let client = Client::far(service, options)?;
    let content = HeaderValue::from_static("application/json");
    let headers = HeaderMap::from_iter([(http::header::CONTENT_TYPE, content)]);
    let url = format!("{}/token", sign_on.oidc);
    let answer = match client
        .send(Method::POST, &url, headers, &body.to_string(), None)
        .await
    {
        Err(CredentialError::Refused {
            status: 400..=401, ..
        }) => return Err(not_signed_on()),
        other => other?,
    };
    let new: Refreshed = client.json(&answer)?;
    let expires = Utc::now() + Duration::from_secs(new.expires_in.max(0) as u64);
    let written = || -> Option<()> {
        let mut fields: serde_json::Value =
            serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
        fields["accessToken"] = new.access_token.as_str().into();
        fields["expiresAt"] = expires.format("%Y-%m-%dT%H:%M:%SZ").to_string().into();
        if let Some(token) = &new.refresh_token {
            secrets::remember(token);
            fields["refreshToken"] = token.as_str().into();
        }
        std::fs::write(file, fields.to_string()).ok()
    };
    if written().is_none() {
        tracing::warn!("cannot keep the renewed sign-on in {}", file.display());
    }
    Ok(new.access_token)
}

fn header(value: &str, service: &str) -> Result<HeaderValue, CredentialError> {
    secrets::remember(value);
    let mut header = HeaderValue::from_str(value).map_err(|_| CredentialError::BadCharacters {
        place: format!("the token for {service}"),
    })?;
    header.set_sensitive(true);
    Ok(header)
}

/// Sends requests to one service.
struct Client {
    http: HttpClient,
    service: String,
}

impl Client {
    /// For a service of this machine: no proxy stands between.
    fn near(service: String, options: &StoreOptions) -> Result<Self, CredentialError> {
        // A proxy that neither names nor addresses are reached through takes the place of the
        // environment's.
        let http = ClientOptions::new()
            .with_proxy_url("http://127.0.0.1:1")
            .with_proxy_excludes("*,0.0.0.0/0,::/0");
        Self::new(
            service,
            http.with_connect_timeout(Duration::from_secs(2)),
            options,
        )
    }

    /// For a service elsewhere.
    fn far(service: String, options: &StoreOptions) -> Result<Self, CredentialError> {
        Self::new(service, ClientOptions::new(), options)
    }

    fn new(
        service: String,
        http: ClientOptions,
        options: &StoreOptions,
    ) -> Result<Self, CredentialError> {
        let no_answer = |source: StoreCause| CredentialError::NoAnswer {
            service: service.clone(),
            source,
        };
        let http = http.with_timeout(TIMEOUT).with_allow_http(true);
        let http = tls::certificates(options)
            .map_err(|error| no_answer(error.source))?
            .into_iter()
            .fold(http, ClientOptions::with_root_certificate);
        // One for each fetch: a client kept longer belongs to the runtime of whoever used it first.
        let connected = ReqwestConnector::default().connect(&http);
        let http = connected.map_err(|error| no_answer(StoreCause::new(&error)))?;
        Ok(Self { http, service })
    }

    /// Sends a request, signed for the security token service where there are keys, until it is
    /// answered. Gives the body of a success.
    async fn send(
        &self,
        method: Method,
        url: &str,
        headers: HeaderMap,
        body: &str,
        signed: Option<(&AwsCredential, &str)>,
    ) -> Result<String, CredentialError> {
        let no_answer = |source: StoreCause| CredentialError::NoAnswer {
            service: self.service.clone(),
            source,
        };
        let uri: http::Uri = url
            .parse()
            .map_err(|error| no_answer(StoreCause::new(&error)))?;
        let mut attempt = 1;
        loop {
            let mut request = HttpRequest::new(HttpRequestBody::from(body.to_owned()));
            (*request.method_mut(), *request.uri_mut()) = (method.clone(), uri.clone());
            request.headers_mut().clone_from(&headers);
            if let Some((keys, region)) = signed {
                let signer = AwsAuthorizer::new(keys, "sts", region);
                let signed = signer.try_authorize(&mut request, None);
                signed.map_err(|error| no_answer(StoreCause::new(&error)))?;
            }
            let answer = async {
                let answer = self.http.execute(request).await?;
                let status = answer.status();
                Ok::<_, object_store::client::HttpError>((
                    status,
                    answer.into_body().bytes().await?,
                ))
            };
            let error = match answer.await {
                Ok((status, body)) if status.is_success() => {
                    return Ok(String::from_utf8_lossy(&body).into_owned());
                }
                Ok((status, body)) => {
                    let error = CredentialError::Refused {
                        service: self.service.clone(),
                        status: status.as_u16(),
                        reason: reason(&String::from_utf8_lossy(&body)),
                    };
                    if !status.is_server_error() && status != http::StatusCode::TOO_MANY_REQUESTS {
                        return Err(error);
                    }
                    error
                }
                Err(error) => no_answer(StoreCause::new(&error)),
            };
            if attempt == ATTEMPTS {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_millis(100) * 3u32.pow(attempt)).await;
            attempt += 1;
        }
    }

    fn json<T: serde::de::DeserializeOwned>(&self, answer: &str) -> Result<T, CredentialError> {
        serde_json::from_str(answer).map_err(|_| self.bad_answer())
    }

    fn bad_answer(&self) -> CredentialError {
        CredentialError::BadAnswer {
            service: self.service.clone(),
        }
    }
}

/// Code and message of a refusal, be it XML or JSON; nothing else of it, as it may repeat the
/// request.
fn reason(body: &str) -> String {
    let of_xml = |name: &str| {
        let (_, rest) = body.split_once(&format!("<{name}>"))?;
        Some(rest.split_once("</")?.0.to_owned())
    };
    let json: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    let find = |names: [&str; 3]| {
        let of_json = |name: &str| json.get(name)?.as_str().map(str::to_owned);
        names
            .into_iter()
            .find_map(|name| of_json(name).or_else(|| of_xml(name)))
    };
    let mut text = find(["Code", "code", "error"]).unwrap_or_default();
    if let Some(message) = find(["Message", "message", "error_description"]) {
        let separator = if text.is_empty() { "" } else { ": " };
        let _ = write!(text, "{separator}{message}");
    }
    redact(&text)
}
