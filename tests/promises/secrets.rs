//! A secret in every place where one can be, and nothing of it in anything that the program says or leaves behind.
use std::path::Path;
use std::process::{Command, Output};

use nepa_tests::program::{jpeg, nepa, newest_checkpoint, text, tiny_recipe};
use nepa_tests::s3::S3Server;
use nepa_tests::shards::labelled_shard;
use nepa_tests::web::{Request, WebServer};
use tempfile::TempDir;

/// Part of every secret here.
const HIDDEN: &str = "Hidden7Hidden";
/// The same in the base64 of a user and password, wherever it begins.
const HIDDEN_IN_BASE64: [&str; 3] = ["SGlkZGVuN0hpZGRl", "hpZGRlbjdIaWRkZW", "IaWRkZW43SGlkZGVu"];

fn shard() -> Vec<u8> {
    let rows = (0..40).map(|n| (Some(jpeg(n)), Some(format!("{n}.jpg")), i64::from(n % 2)));
    labelled_shard([rows.collect::<Vec<_>>()])
}

/// Panics where `bytes` hold a secret, in UTF-8, base64 or percent-encoding.
#[track_caller]
fn holds_none(place: &str, bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for secret in std::iter::once(&HIDDEN).chain(&HIDDEN_IN_BASE64) {
        if let Some(at) = text.find(secret) {
            let from = (0..=at.saturating_sub(300))
                .rev()
                .find(|&from| text.is_char_boundary(from));
            panic!(
                "a secret in {place}: ...{}",
                &text[from.unwrap_or(0)..at + secret.len()]
            );
        }
    }
}

fn folder_holds_none(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    let counts = entries.map(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return folder_holds_none(&path);
        }
        holds_none(
            &path.display().to_string(),
            path.display().to_string().as_bytes(),
        );
        holds_none(&path.display().to_string(), &std::fs::read(&path).unwrap());
        1
    });
    counts.sum()
}

/// A program that logs all it can.
fn loud() -> Command {
    let mut command = nepa();
    command.env("RUST_LOG", "trace").env("RUST_BACKTRACE", "1");
    for name in [
        "HTTP_PROXY",
        "http_proxy",
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
    ] {
        command.env_remove(name);
    }
    command
}

#[track_caller]
fn run(command: &mut Command, succeeds: bool) -> Output {
    let output = command.output().unwrap();
    let name = command
        .get_args()
        .map(|arg| arg.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ");
    assert_eq!(
        output.status.success(),
        succeeds,
        "{name}: {}",
        text(&output)
    );
    holds_none(&format!("the standard output of {name}"), &output.stdout);
    holds_none(&format!("the standard error of {name}"), &output.stderr);
    assert!(
        !text(&output).contains("this is a bug"),
        "{}",
        text(&output)
    );
    output
}

/// The whole life of a run on data at `data`, output at `out`, with what `environment` sets.
fn whole_life(folder: &Path, data: &str, out: &str, environment: &[(&str, &str)]) {
    let with = |args: &[&str]| {
        let mut command = loud();
        command.args(args).envs(environment.iter().copied());
        command
    };
    let recipe = tiny_recipe();
    let recipe = recipe.to_str().unwrap();
    let cache = folder.join("cache");
    let cache = format!("io.cache_dir=\"{}\"", cache.display());
    run(&mut with(&["inspect", data]), true);
    let pretrain = [
        "pretrain", recipe, "--data", data, "--out", out, "--set", &cache,
    ];
    run(with(&pretrain).args(["--max-steps", "6"]), true);
    run(with(&pretrain).arg("--resume"), true);
    let measured = folder.join("profile.json");
    let profile = [
        "profile",
        data,
        "--seconds",
        "0.1",
        "--batch",
        "8",
        "--json",
    ];
    run(with(&profile).arg(measured), true);
    let report = folder.join("report");
    let report = report.to_str().unwrap();
    run(
        &mut with(&[
            "report", out, "--maps", "1", "--images", data, "--out", report,
        ]),
        true,
    );
    let local = Path::new(out).join("checkpoints");
    if local.exists() {
        let checkpoint = newest_checkpoint(Path::new(out));
        let checkpoint = checkpoint.to_str().unwrap();
        let eval = [
            "eval",
            "knn",
            "--checkpoint",
            checkpoint,
            "--train",
            data,
            "--test",
            data,
            "--k",
            "1",
        ];
        run(&mut with(&eval), true);
        let exported = folder.join("exported");
        run(
            &mut with(&["export", checkpoint, exported.to_str().unwrap()]),
            true,
        );
    }
    assert!(folder_holds_none(folder) > 5);
}

#[test]
fn no_secret_of_an_s3_store_is_said_or_left_behind() {
    let server = S3Server::start();
    server.put("bucket", "set/train-0.parquet", shard());
    server.create_bucket("runs");
    let secret = format!("secret-{HIDDEN}");
    let token = format!("token-{HIDDEN}+/=");
    let home = TempDir::new().unwrap();
    std::fs::create_dir(home.path().join(".aws")).unwrap();
    server.change_key("lent-key", &secret);
    let keys = format!(
        r#"{{"Version": 1, "AccessKeyId": "lent-key", "SecretAccessKey": "{secret}", "Token": "{token}", "SessionToken": "{token}"}}"#
    );
    let config = format!(
        "[profile file]\naws_access_key_id = lent-key\naws_secret_access_key = {secret}\naws_session_token = {token}\n\
         [profile program]\ncredential_process = echo '{}'\n",
        keys.replace(r#""Token": "#, r#""x": "#)
    );
    std::fs::write(home.path().join(".aws/config"), config).unwrap();
    let container_token = format!("container-{HIDDEN}");
    let shown = container_token.clone();
    let keys = keys.replace(r#""SessionToken": "#, r#""x": "#);
    let container = WebServer::start(move |request: &Request| {
        assert_eq!(request.header("authorization"), Some(shown.as_str()));
        (200, keys.clone().into_bytes())
    });
    let (endpoint, home_path) = (server.endpoint(), home.path().to_str().unwrap());
    let common = [("AWS_ENDPOINT_URL", endpoint.as_str()), ("HOME", home_path)];
    let container_url = container.url();
    let ways: [&[(&str, &str)]; 4] = [
        &[
            ("AWS_ACCESS_KEY_ID", "lent-key"),
            ("AWS_SECRET_ACCESS_KEY", &secret),
            ("AWS_SESSION_TOKEN", &token),
        ],
        &[("AWS_PROFILE", "file")],
        &[("AWS_PROFILE", "program")],
        &[
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &container_url),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN", &container_token),
        ],
    ];
    for (number, way) in ways.into_iter().enumerate() {
        let folder = TempDir::new().unwrap();
        let environment = [&common[..], way].concat();
        if number == 0 {
            let out = folder.path().join("run");
            whole_life(
                folder.path(),
                "s3://bucket/set",
                out.to_str().unwrap(),
                &environment,
            );
            // What fails says more.
            for url in ["s3://bucket/absent/", "s3://absent/x.parquet"] {
                run(
                    loud()
                        .args(["inspect", url])
                        .envs(environment.iter().copied()),
                    false,
                );
            }
            server.change_key("lent-key", "another");
            run(
                loud()
                    .args(["inspect", "s3://bucket/set"])
                    .envs(environment.iter().copied()),
                false,
            );
            server.change_key("lent-key", &secret);
        } else {
            whole_life(
                folder.path(),
                "s3://bucket/set",
                &format!("s3://runs/{number}"),
                &environment,
            );
        }
    }
    let left = server.keys("runs");
    assert!(left.len() > 10, "{left:?}");
    for key in left {
        holds_none(&key, key.as_bytes());
        holds_none(&key, &server.get("runs", &key).unwrap());
    }
    // Packing into the store.
    let folder = TempDir::new().unwrap();
    std::fs::create_dir_all(folder.path().join("images/a")).unwrap();
    for n in 0..4 {
        std::fs::write(folder.path().join(format!("images/a/{n}.jpg")), jpeg(n)).unwrap();
    }
    let images = folder.path().join("images");
    let pack = ["pack", images.to_str().unwrap(), "s3://runs/packed"];
    run(
        loud().args(pack).envs([&common[..], ways[0]].concat()),
        true,
    );
    for key in server.keys("runs") {
        holds_none(&key, &server.get("runs", &key).unwrap());
    }
}

#[test]
fn no_secret_of_a_web_url_is_said_or_left_behind() {
    let may = |request: &Request| {
        let signed =
            request.target.contains("X-Amz-Signature=") && request.target.contains("versionId=7");
        signed || request.header("authorization").is_some()
    };
    let web = WebServer::of_object(shard(), may);
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let out = out.to_str().unwrap();
    let signed = |signature: &str| {
        format!(
            "{}/x.parquet?versionId=7&X-Amz-Credential=AK{HIDDEN}%2F2026&X-Amz-Signature={signature}{HIDDEN}&\
             X-Amz-Security-Token={HIDDEN}%2Ftoken&own={HIDDEN}",
            web.url()
        )
    };
    whole_life(folder.path(), &signed("a"), out, &[]);
    // Signed again, and by a user, it is the same data set: the run goes on to where it ended.
    let recipe = tiny_recipe();
    let resume = [
        "pretrain",
        recipe.to_str().unwrap(),
        "--out",
        out,
        "--resume",
        "--data",
    ];
    run(loud().args(resume).arg(signed("b")), true);
    // The stored URL opens nothing, and says so.
    let stored = std::fs::read_to_string(Path::new(out).join("recipe.toml")).unwrap();
    let stored: toml::Table = stored.parse().unwrap();
    let url = stored["data"]["urls"][0].as_str().unwrap().to_owned();
    assert!(
        url.contains("versionId=7") && url.ends_with("credentials=REMOVED"),
        "{url}"
    );
    let said = text(&run(loud().args(resume).arg(&url), false));
    assert!(said.contains("give the whole URL again"), "{said}");

    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let user = format!("http://me:{HIDDEN}@{}/x.parquet", web.address());
    whole_life(folder.path(), &user, out.to_str().unwrap(), &[]);

    // Mistakes on the command line and in settings repeat what was typed.
    for url in [
        signed("a"),
        user.clone(),
        user.replace("http", "ftp"),
        format!("s3://key:{HIDDEN}@bucket/x"),
    ] {
        run(loud().args(["inspect", "--no-such-option", &url]), false);
        run(
            loud().args(["inspect", &url, "--image-column", "absent"]),
            false,
        );
        let set = format!("data.urls=\"{url}\"");
        let pretrain = [
            "pretrain",
            recipe.to_str().unwrap(),
            "--out",
            "/nonexistent/x",
            "--set",
            &set,
        ];
        run(loud().args(pretrain), false);
        run(loud().args(["pack", "/nonexistent", &url]), false);
    }
}

/// A server that repeats all that it was sent, at stores of every kind; and proxies.
/// A URL, and the settings of each command.
type Case<'a> = (&'a str, &'a [&'a [(&'a str, &'a str)]]);

#[test]
fn what_a_server_repeats_is_not_passed_on() {
    let echo = WebServer::start(|request| {
        (
            403,
            format!("<Error><Code>AccessDenied</Code><Message>{request:?}</Message></Error>")
                .into_bytes(),
        )
    });
    let (url, secret) = (echo.url(), format!("Secret{HIDDEN}AB"));
    // Keys of Azure are base64.
    let azure_key = format!("{HIDDEN}AAA");
    let sas = format!("sv=2026-01-01&se=2126-01-01&sp=rl&sig={HIDDEN}%2Fabc%3D");
    let service_account = format!(
        r#"{{"type": "service_account", "client_email": "e", "private_key_id": "id-{HIDDEN}",
            "private_key": "-----BEGIN PRIVATE KEY-----\n{HIDDEN}{HIDDEN}\n-----END PRIVATE KEY-----\n"}}"#
    );
    let user_proxy = format!("http://me:{HIDDEN}@127.0.0.1:1");
    let azure = [
        ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
        ("AZURE_STORAGE_ENDPOINT", url.as_str()),
    ];
    let aws = [
        ("AWS_ENDPOINT_URL", url.as_str()),
        ("AWS_ACCESS_KEY_ID", "id-of-this-test"),
        ("AWS_SECRET_ACCESS_KEY", &secret),
        ("AWS_SESSION_TOKEN", &secret),
    ];
    let cases: &[Case<'_>] = &[
        ("s3://bucket/x.parquet", &[&aws]),
        ("s3://bucket/prefix/", &[&aws]),
        (
            "s3://bucket/prefix/",
            &[
                &aws,
                &[("HTTP_PROXY", &user_proxy), ("http_proxy", &user_proxy)],
            ],
        ),
        (
            "az://container/x.parquet",
            &[&azure, &[("AZURE_STORAGE_SAS_TOKEN", &sas)]],
        ),
        (
            "az://container/x/",
            &[&azure, &[("AZURE_STORAGE_SAS_TOKEN", &sas)]],
        ),
        (
            "az://container/x/",
            &[&azure, &[("AZURE_STORAGE_ACCOUNT_KEY", &azure_key)]],
        ),
        (
            "az://container/x/",
            &[&azure, &[("AZURE_STORAGE_TOKEN", &secret)]],
        ),
        (
            "gs://bucket/x/",
            &[&[
                ("GOOGLE_BASE_URL", &url),
                ("GOOGLE_SERVICE_ACCOUNT_KEY", &service_account),
            ]],
        ),
        (
            "gs://bucket/x/",
            &[&[("GOOGLE_BASE_URL", &url), ("GOOGLE_BEARER_TOKEN", &secret)]],
        ),
    ];
    for (store, environment) in cases {
        let mut command = loud();
        command.args(["inspect", store]).envs(environment.concat());
        command.env("NO_PROXY", "").env("no_proxy", "");
        run(&mut command, false);
    }
    for url in [
        format!("{url}/x.parquet?X-Amz-Signature={HIDDEN}&own={HIDDEN}&{HIDDEN}"),
        format!("http://me:{HIDDEN}@{}/x.parquet", echo.address()),
    ] {
        run(loud().args(["inspect", &url]), false);
    }
}
