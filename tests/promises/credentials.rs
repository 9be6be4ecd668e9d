//! Credentials come from every place where Amazon's own tools find them, are renewed in time, and endpoints are taken as
//! people write them.
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::TryStreamExt;
use nepa_pipeline::{IoConfig, IoRuntime, StoreOptions, full_text, open_url};
use nepa_tests::data::open;
use nepa_tests::program::{assert_says, nepa, succeed, text};
use nepa_tests::s3::S3Server;
use nepa_tests::shards::flat_shard;
use nepa_tests::web::{Request, WebServer};
use object_store::ObjectStoreExt;
use tempfile::TempDir;

/// A bucket with one shard, whose keys are `lent-key` and `lent-secret`, and a home folder with a profile file.
struct Place {
    server: S3Server,
    home: TempDir,
}

impl Place {
    fn new(config: &str) -> Self {
        let server = S3Server::start();
        server.put("bucket", "x.parquet", flat_shard(3));
        server.change_key("lent-key", "lent-secret");
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        std::fs::write(home.path().join(".aws/config"), config).unwrap();
        Self { server, home }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.home.path().join(name)
    }

    /// Nothing of the caller's clouds, and `more`.
    fn io(&self, more: &[(&str, &str)]) -> IoConfig {
        let mut options = cleared();
        options.push(("HOME", self.home.path().to_str().unwrap().to_owned()));
        options.push(("AWS_ENDPOINT_URL_S3", self.server.endpoint()));
        options.extend(more.iter().map(|&(name, value)| (name, value.to_owned())));
        IoConfig {
            store_options: StoreOptions::new(options),
            outage_s: 1.0,
            ..IoConfig::default()
        }
    }
}

fn cleared() -> Vec<(&'static str, String)> {
    let names = [
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_PROFILE",
        "AWS_CONFIG_FILE",
        "AWS_SHARED_CREDENTIALS_FILE",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_ENDPOINT_URL",
        "AWS_EC2_METADATA_DISABLED",
        "GOOGLE_APPLICATION_CREDENTIALS",
    ];
    names.map(|name| (name, String::new())).into()
}

fn keys_as_json(id: &str, secret: &str, more: &str) -> Vec<u8> {
    format!(r#"{{"Version": 1, "AccessKeyId": "{id}", "SecretAccessKey": "{secret}"{more}}}"#)
        .into_bytes()
}

/// The services of a cloud that hand out `lent-key` to whoever shows the right token.
fn cloud(request: &Request) -> (u16, Vec<u8>) {
    let lent = || {
        (
            200,
            keys_as_json("lent-key", "lent-secret", r#", "Token": "t-o-k-e-n""#),
        )
    };
    let role = |action: &str| {
        let xml = format!(
            "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{action}Result><Credentials>\
             <AccessKeyId>lent-key</AccessKeyId><SecretAccessKey>lent-secret</SecretAccessKey><SessionToken>t</SessionToken>\
             <Expiration>2126-01-01T00:00:00Z</Expiration></Credentials></{action}Result></{action}Response>"
        );
        (200, xml.into_bytes())
    };
    let shows = |name, value| {
        request
            .header(name)
            .is_some_and(|shown| shown.contains(value))
    };
    match (request.method.as_str(), request.target.as_str()) {
        ("GET", "/container") if shows("authorization", "container-token") => lent(),
        ("GET", "/open") => lent(),
        ("PUT", "/latest/api/token") => (200, b"machine-token".into()),
        ("GET", "/latest/meta-data/iam/security-credentials/")
            if shows("x-aws-ec2-metadata-token", "machine-token") =>
        {
            (200, b"the-role\n".into())
        }
        ("GET", "/latest/meta-data/iam/security-credentials/the-role")
            if shows("x-aws-ec2-metadata-token", "machine-token") =>
        {
            lent()
        }
        ("POST", "/")
            if request.body.contains("Action=AssumeRole&")
                && request
                    .body
                    .contains("RoleArn=arn%3Arole&RoleSessionName=me&ExternalId=ex")
                && shows("authorization", "Credential=base-key/")
                && shows("authorization", "/eu-west-1/sts/") =>
        {
            role("AssumeRole")
        }
        ("POST", "/") if request.body.contains("WebIdentityToken=web-token") => {
            role("AssumeRoleWithWebIdentity")
        }
        ("GET", "/federation/credentials?account_id=1&role_name=r")
            if shows("x-amz-sso_bearer_token", "fresh-token") =>
        {
            let keys = r#"{"roleCredentials": {"accessKeyId": "lent-key", "secretAccessKey": "lent-secret",
                "sessionToken": "t", "expiration": 4900000000000}}"#;
            (200, keys.into())
        }
        ("POST", "/token") if request.body.contains(r#""refreshToken":"old-refresh""#) => {
            let token = r#"{"accessToken": "fresh-token", "expiresIn": 3600, "refreshToken": "new-refresh"}"#;
            (200, token.into())
        }
        _ => (
            403,
            br#"{"code": "AccessDenied", "message": "not by this token"}"#.into(),
        ),
    }
}

const CONFIG: &str = r#"
[profile plain]
aws_access_key_id = lent-key
aws_secret_access_key = lent-secret
[profile "two words"]
credential_process = printf '{"Version": 1, "AccessKeyId": "lent-key", "SecretAccessKey": "lent-secret"}'
[profile role]
role_arn = arn:role
role_session_name = me
external_id = ex
source_profile = base
region = eu-west-1
[profile base]
aws_access_key_id = base-key
aws_secret_access_key = base-secret
[profile web]
role_arn = arn:role
web_identity_token_file = HOME/web-token
[profile sso]
sso_session = corp
sso_account_id = 1
sso_role_name = r
[sso-session corp]
sso_region = us-west-2
sso_start_url = https://corp/start
[profile container]
role_arn = arn:role
role_session_name = me
external_id = ex
region = eu-west-1
credential_source = Environment
"#;

#[test]
fn credentials_are_found_where_amazons_tools_find_them() {
    let cloud = WebServer::start(cloud);
    let place = Place::new("");
    let home = place.home.path().to_str().unwrap().to_owned();
    std::fs::write(place.path(".aws/config"), CONFIG.replace("HOME", &home)).unwrap();
    std::fs::write(place.path("web-token"), "web-token\n").unwrap();
    std::fs::write(place.path("container-token"), "container-token\n").unwrap();
    std::fs::create_dir_all(place.path(".aws/sso/cache")).unwrap();
    let token = r#"{"startUrl": "https://corp/start", "region": "us-west-2", "accessToken": "old-token",
        "expiresAt": "2026-01-01T00:00:00Z", "clientId": "c", "clientSecret": "s", "refreshToken": "old-refresh"}"#;
    let token_file = place.path(".aws/sso/cache/abc.json");
    std::fs::write(&token_file, token).unwrap();
    std::fs::write(
        place.path(".aws/sso/cache/client.json"),
        r#"{"clientId": "c"}"#,
    )
    .unwrap();
    let services = [
        ("AWS_ENDPOINT_URL_STS", cloud.url()),
        ("AWS_ENDPOINT_URL_SSO", cloud.url()),
        ("AWS_ENDPOINT_URL_SSO_OIDC", cloud.url()),
    ];
    let (container, open_container) = (
        format!("{}/container", cloud.url()),
        format!("{}/open", cloud.url()),
    );
    let (web_token, container_token) = (
        format!("{home}/web-token"),
        format!("{home}/container-token"),
    );
    let metadata = cloud.url();
    let ways: &[&[(&str, &str)]] = &[
        &[
            ("AWS_ACCESS_KEY_ID", "lent-key\n"),
            ("AWS_SECRET_ACCESS_KEY", "lent-secret"),
        ],
        &[("AWS_PROFILE", "plain")],
        &[("AWS_PROFILE", "two words")],
        &[("AWS_PROFILE", "role")],
        &[("AWS_PROFILE", "web")],
        &[("AWS_PROFILE", "sso")],
        &[
            ("AWS_WEB_IDENTITY_TOKEN_FILE", &web_token),
            ("AWS_ROLE_ARN", "arn:role"),
        ],
        &[
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &container),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "container-token"),
        ],
        &[
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &container),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &container_token),
        ],
        &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &open_container)],
        &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &metadata)],
    ];
    for way in ways {
        let mut options = way.to_vec();
        options.extend(services.iter().map(|(name, url)| (*name, url.as_str())));
        let opened = open("s3://bucket", &place.io(&options));
        let opened = opened.unwrap_or_else(|error| panic!("{way:?}: {}", full_text(&error)));
        assert_eq!(opened.num_samples(), 3, "{way:?}");
    }
    // The renewed sign-on is kept for whoever comes next, as the old one is spent.
    let token = std::fs::read_to_string(token_file).unwrap();
    assert_says(
        &token,
        &["fresh-token", "new-refresh", "https://corp/start"],
    );
    assert!(!token.contains("old-"), "{token}");
}

/// What is set, and what is expected.
type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);

#[test]
fn what_cannot_be_got_is_told_with_its_place() {
    let place = Place::new(
        "[profile broken]\ncredential_process = echo 'who? hidden-hidden' >&2; exit 3\n\
         [profile wordy]\ncredential_process = echo hidden-hidden\n\
         [profile sso]\nsso_start_url = u\nsso_region = r\nsso_account_id = 1\nsso_role_name = r\n\
         [profile other]\naws_access_key_id = lent-key\naws_secret_access_key = lent-secret\n",
    );
    let refusing = WebServer::start(|_| {
        (
            403,
            b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>".into(),
        )
    });
    let url = refusing.url();
    let cases: &[Case<'_>] = &[
        (
            &[("AWS_PROFILE", "broken")],
            &["\"broken\"", "credential_process", "exit status: 3", "who?"],
        ),
        (&[("AWS_PROFILE", "wordy")], &["\"wordy\"", "AccessKeyId"]),
        (&[("AWS_PROFILE", "sso")], &["aws sso login --profile sso"]),
        (
            &[("AWS_PROFILE", "typo")],
            &["\"typo\"", "AWS_PROFILE", "broken, other, sso, wordy"],
        ),
        (
            &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &url)],
            &["403", "AccessDenied: no", "container", &url],
        ),
        (
            &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://far.example")],
            &["http://far.example", "token"],
        ),
        (&[("AWS_ACCESS_KEY_ID", "id")], &["AWS_SECRET_ACCESS_KEY"]),
        (
            &[("AWS_EC2_METADATA_DISABLED", "true")],
            &["no credentials for s3://bucket", "AWS_SKIP_SIGNATURE"],
        ),
    ];
    for (options, parts) in cases {
        let error = full_text(&open("s3://bucket", &place.io(options)).unwrap_err());
        println!("{error}");
        assert_says(&error, parts);
        assert_says(&error, &["credentials for s3://bucket"]);
    }
}

/// A program that prints the keys in a file, and counts.
fn printing_profile(place: &Place) {
    let config = format!(
        "[default]\ncredential_process = echo >> {0}/count; cat {0}/keys\n",
        place.home.path().display()
    );
    std::fs::write(place.path(".aws/config"), config).unwrap();
}

fn count(place: &Place) -> usize {
    std::fs::read_to_string(place.path("count")).map_or(0, |text| text.lines().count())
}

#[test]
fn expired_credentials_are_renewed_whatever_is_asked_for() {
    let place = Place::new("");
    printing_profile(&place);
    std::fs::write(
        place.path("keys"),
        keys_as_json("lent-key", "lent-secret", ""),
    )
    .unwrap();
    let io = place.io(&[]);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let out = open_url("s3://bucket/out", &io).unwrap();
    let (store, path) = (Arc::clone(&out.store), out.path.clone());
    let mut number = 0;
    let mut expire = || {
        number += 1;
        let new = format!("key-{number}");
        place.server.change_key(&new, "new-secret");
        std::fs::write(
            place.path("keys"),
            keys_as_json(&new, "new-secret", r#", "SessionToken": "t-o-k-e-n""#),
        )
        .unwrap();
        std::thread::sleep(Duration::from_millis(1100));
    };
    let dataset = open("s3://bucket", &io).unwrap();
    // Three stores read, one writes; the program ran once for all.
    assert_eq!(count(&place), 1);
    runtime.block_on(async {
        store
            .put(&path.clone().join("a"), "a".into())
            .await
            .unwrap();
        expire();
        store
            .put(&path.clone().join("b"), "b".into())
            .await
            .unwrap();
        expire();
        let listed: Vec<_> = store.list(Some(&path)).try_collect().await.unwrap();
        assert_eq!(listed.len(), 2);
        expire();
        assert_eq!(store.head(&path.clone().join("a")).await.unwrap().size, 1);
        expire();
        let mut upload = store.put_multipart(&path.clone().join("c")).await.unwrap();
        expire();
        upload.put_part(vec![7; 6 << 20].into()).await.unwrap();
        expire();
        upload.put_part("end".into()).await.unwrap();
        expire();
        upload.complete().await.unwrap();
        expire();
        store.delete(&path.clone().join("a")).await.unwrap();
        expire();
        let bytes = store
            .get(&path.clone().join("c"))
            .await
            .unwrap()
            .bytes()
            .await
            .unwrap();
        assert_eq!(bytes.len(), (6 << 20) + 3);
        expire();
    });
    assert_eq!(count(&place), 10);
    assert_eq!(
        open("s3://bucket", &io).unwrap().num_samples(),
        dataset.num_samples()
    );
    assert_eq!(count(&place), 11);

    // Where there are no others, the store's own words are told, and nobody is asked again and again.
    place.server.change_key("nobody-has", "this-one");
    let error = full_text(&open("s3://bucket", &io).unwrap_err());
    assert_says(&error, &["ExpiredToken"]);
    assert!(count(&place) < 15, "{}", count(&place));
}

#[test]
fn credentials_are_renewed_before_they_expire() {
    let place = Place::new("");
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    // Good for four seconds: after two others are fetched. The second time nobody answers, and the old ones go on.
    let container = WebServer::start(move |_| {
        if counted.fetch_add(1, SeqCst) == 1 {
            return (404, Vec::new());
        }
        let expires = chrono_in(Duration::from_secs(4));
        (
            200,
            keys_as_json(
                "lent-key",
                "lent-secret",
                &format!(r#", "Expiration": "{expires}""#),
            ),
        )
    });
    let io = place.io(&[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &container.url())]);
    let out = open_url("s3://bucket", &io).unwrap();
    let runtime = IoRuntime::new(1).unwrap();
    let put = |after_ms, expected| {
        std::thread::sleep(Duration::from_millis(after_ms));
        let (store, path) = (Arc::clone(&out.store), out.path.clone());
        runtime.block_on(async move { store.put(&path.join("a"), "a".into()).await.unwrap() });
        assert_eq!(asked.load(SeqCst), expected);
    };
    put(0, 1);
    put(100, 1);
    put(2200, 2);
    put(100, 2);
    put(2000, 3);
}

/// The time in so long, as services write it.
fn chrono_in(duration: Duration) -> String {
    let output = std::process::Command::new("date")
        .args([
            "-u",
            "-d",
            &format!("+{} seconds", duration.as_secs()),
            "+%Y-%m-%dT%H:%M:%SZ",
        ])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn endpoints_are_taken_as_people_write_them() {
    let place = Place::new("");
    let bare = place.server.endpoint().replace("http://", "");
    let keys = [
        ("AWS_ACCESS_KEY_ID", "lent-key"),
        ("AWS_SECRET_ACCESS_KEY", "lent-secret"),
    ];
    for endpoint in [&bare, &format!(" {bare}/ "), &place.server.endpoint()] {
        for variable in ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"] {
            let mut options = vec![("AWS_ENDPOINT_URL_S3", ""), (variable, endpoint.as_str())];
            options.extend(keys);
            assert_eq!(
                open("s3://bucket", &place.io(&options))
                    .unwrap()
                    .num_samples(),
                3
            );
        }
    }
    for config in [
        format!("[default]\nendpoint_url = {bare} # the one in the cellar\n"),
        format!(
            "[default]\nservices = near\n[services near]\ns3 =\n  endpoint_url = http://{bare}\n"
        ),
    ] {
        std::fs::write(place.path(".aws/config"), config).unwrap();
        let mut options = vec![("AWS_ENDPOINT_URL_S3", "")];
        options.extend(keys);
        assert_eq!(
            open("s3://bucket", &place.io(&options))
                .unwrap()
                .num_samples(),
            3
        );
    }
    let web = WebServer::of_object(flat_shard(3), |_| true);
    for url in [web.url(), web.address()] {
        let google = [
            ("GOOGLE_BASE_URL", url.as_str()),
            ("GOOGLE_SKIP_SIGNATURE", "true"),
        ];
        assert_eq!(
            open("gs://bucket/x.parquet", &place.io(&google))
                .unwrap()
                .num_samples(),
            3
        );
        for variable in ["AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"] {
            let azure = [
                (variable, url.as_str()),
                ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
                ("AZURE_SKIP_SIGNATURE", "true"),
            ];
            assert_eq!(
                open("az://bucket/x.parquet", &place.io(&azure))
                    .unwrap()
                    .num_samples(),
                3
            );
        }
    }
    for (variable, url) in [
        ("AWS_ENDPOINT_URL_S3", "s3://bucket"),
        ("GOOGLE_BASE_URL", "gs://bucket"),
        ("AZURE_STORAGE_ENDPOINT", "az://bucket"),
    ] {
        for value in [
            "http://",
            "a b",
            "http://user:hidden-hidden@host",
            "http://h?sig=hidden-hidden",
        ] {
            let more = [
                (variable, value),
                ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
                ("AZURE_SKIP_SIGNATURE", "true"),
                ("GOOGLE_SKIP_SIGNATURE", "true"),
            ];
            let mut options = keys.to_vec();
            options.extend(more);
            let error = full_text(&open(url, &place.io(&options)).unwrap_err());
            assert_says(&error, &[variable, url]);
            assert!(!error.contains("hidden-hidden"), "{error}");
        }
    }
}

#[test]
fn a_web_url_with_a_user_shows_it_to_the_server_only() {
    // user:pass word
    let web = WebServer::of_object(flat_shard(3), |request| {
        request.header("authorization") == Some("Basic dXNlcjpwYXNzIHdvcmQ=")
    });
    let url = format!("http://user:pass%20word@{}/x.parquet", web.address());
    let dataset = open(&url, &Place::new("").io(&[])).unwrap();
    assert_eq!(dataset.shards()[0].url, format!("{}/x.parquet", web.url()));
    let error = open(&url.replace("word", "worse"), &Place::new("").io(&[])).unwrap_err();
    let error = full_text(&error);
    assert!(
        error.contains("refuse") && !error.contains("worse"),
        "{error}"
    );
}

/// The bucket goes into the host; a proxy sees where the request is sent.
#[test]
fn the_bucket_in_the_host_with_an_endpoint_of_ones_own() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sees = Arc::clone(&seen);
    let proxy = WebServer::start(move |request| {
        sees.lock().unwrap().push(request.target.clone());
        (404, Vec::new())
    });
    let output = nepa()
        .args(["inspect", "s3://bucket/x.parquet"])
        .envs(cleared())
        .env("AWS_ENDPOINT_URL", "http://store.test:81")
        .env("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true")
        .env("AWS_SKIP_SIGNATURE", "true")
        .env("HTTP_PROXY", proxy.url())
        .env("http_proxy", proxy.url())
        .env("NO_PROXY", "")
        .env("no_proxy", "")
        .output()
        .unwrap();
    let seen = seen.lock().unwrap();
    assert!(
        seen.first()
            .is_some_and(|target| target.starts_with("http://bucket.store.test:81/x.parquet")),
        "{seen:?}\n{}",
        text(&output)
    );
}

/// A SOCKS proxy, which also resolves the name.
#[test]
fn a_socks_proxy_is_gone_through() {
    use std::io::{Read, Write};
    let web = WebServer::of_object(flat_shard(3), |_| true);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = format!("socks5h://{}", listener.local_addr().unwrap());
    let (seen, to) = (Arc::new(Mutex::new(String::new())), web.address());
    let sees = Arc::clone(&seen);
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            // No password; a connection to a name of some length, and a port.
            let mut head = [0; 3];
            client.read_exact(&mut head[..2]).unwrap();
            client.read_exact(&mut vec![0; head[1].into()]).unwrap();
            client.write_all(&[5, 0]).unwrap();
            let mut ask = [0; 5];
            client.read_exact(&mut ask).unwrap();
            let mut name = vec![0; usize::from(ask[4]) + 2];
            client.read_exact(&mut name).unwrap();
            name.truncate(ask[4].into());
            *sees.lock().unwrap() = String::from_utf8(name).unwrap();
            client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).unwrap();
            let mut server = std::net::TcpStream::connect(&to).unwrap();
            let (mut from_client, mut to_server) =
                (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from_client, &mut to_server).ok());
            std::thread::spawn(move || {
                std::io::copy(&mut server, &mut client).ok();
                client.shutdown(std::net::Shutdown::Both).ok();
            });
        }
    });
    let mut command = nepa();
    for name in [
        "HTTP_PROXY",
        "http_proxy",
        "NO_PROXY",
        "no_proxy",
        "all_proxy",
    ] {
        command.env_remove(name);
    }
    command
        .args(["inspect", "http://far.test/x.parquet"])
        .env("ALL_PROXY", proxy);
    succeed(&mut command);
    assert_eq!(*seen.lock().unwrap(), "far.test");
}

/// What a certificate that nobody knows is told as, and a file of certificates that is not there.
#[test]
fn certificates_that_cannot_be_used_are_named() {
    let place = Place::new("");
    let absent = Path::new("/nonexistent/roots.pem");
    let keys = [
        ("AWS_ACCESS_KEY_ID", "lent-key"),
        ("AWS_SECRET_ACCESS_KEY", "lent-secret"),
        ("AWS_CA_BUNDLE", absent.to_str().unwrap()),
    ];
    let error = full_text(&open("s3://bucket", &place.io(&keys)).unwrap_err());
    assert_says(&error, &["AWS_CA_BUNDLE", "/nonexistent/roots.pem", "PEM"]);
}
