//! The servers: those of others as child processes on loopback, and ours in this process. Each stops with its test.
//!
//! `NEPA_MOTO`, `NEPA_WEED` and `NEPA_AZURITE` name the programs; `scripts/stores.sh` installs them and sets these.
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nepa_pipeline::{IoConfig, IoRuntime, StoreOptions, StoreUrl, open_url};
use nepa_tests::s3::S3Server;
use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::azure::{AzureAccessKey, AzureAuthorizer, AzureCredential};
use object_store::client::{HttpConnector, HttpRequest, HttpRequestBody, ReqwestConnector};
use object_store::{ClientOptions, ObjectStoreExt};
use tempfile::TempDir;

pub(crate) const KEY: &str = "test-key";
pub(crate) const SECRET: &str = "test-secret";
/// Azurite's account and its key, which are the same everywhere.
const ACCOUNT: &str = "devstoreaccount1";
const ACCOUNT_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A store that a test may fill and the program may use.
pub(crate) struct Server {
    pub(crate) name: &'static str,
    scheme: &'static str,
    endpoint: String,
    /// Ends before its folder.
    running: Running,
    _folder: TempDir,
}

enum Running {
    Process(KilledAtTheEnd),
    Here(S3Server),
}

struct KilledAtTheEnd {
    child: Child,
    /// What the program leaves outside its folder.
    leftovers: Vec<PathBuf>,
}

impl Drop for KilledAtTheEnd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for leftover in &self.leftovers {
            let _ = std::fs::remove_file(leftover);
        }
    }
}

impl Server {
    /// Ours, in this process and in memory.
    pub(crate) fn ours() -> Self {
        let server = S3Server::start();
        Self {
            name: "in-process",
            scheme: "s3",
            endpoint: server.endpoint(),
            running: Running::Here(server),
            _folder: tempfile::tempdir().unwrap(),
        }
    }

    /// moto: AWS's answers as its own users know them. It checks no signatures.
    pub(crate) fn moto() -> Option<Self> {
        let mut command = Command::new(program("NEPA_MOTO", "moto")?);
        let [port] = free_ports();
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        Some(Self::start(
            "moto",
            "s3",
            port,
            "",
            command,
            tempfile::tempdir().unwrap(),
        ))
    }

    /// SeaweedFS, one process with a master, a volume server, a filer and the S3 gateway. It checks signatures.
    pub(crate) fn seaweed() -> Option<Self> {
        let mut command = Command::new(program("NEPA_WEED", "SeaweedFS")?);
        let folder = tempfile::tempdir().unwrap();
        let users = folder.path().join("users.json");
        let text = serde_json::json!({"identities": [{
            "name": "tests", "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }]});
        std::fs::write(&users, text.to_string()).unwrap();
        let ports: [u16; 8] = free_ports();
        let names = [
            "s3.port",
            "s3.port.grpc",
            "master.port",
            "master.port.grpc",
            "volume.port",
            "volume.port.grpc",
            "filer.port",
            "filer.port.grpc",
        ];
        command
            .args(["server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer"])
            .args([
                "-s3",
                "-s3.iam=false",
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
            ])
            .args(["-volume.max=20", "-master.volumeSizeLimitMB=64"])
            .arg(format!("-s3.config={}", users.display()))
            .arg(format!("-dir={}", folder.path().display()))
            .args(
                names
                    .iter()
                    .zip(ports)
                    .map(|(name, port)| format!("-{name}={port}")),
            );
        for what in ["s3", "filer"] {
            let socket = folder.path().join(what);
            command.arg(format!("-{what}.localSocket={}", socket.display()));
        }
        let leftovers = ["s3", "master", "volume", "filer"]
            .iter()
            .zip(ports.iter().skip(1).step_by(2))
            .map(|(what, port)| format!("/tmp/seaweedfs-{what}-grpc-{port}.sock").into());
        let mut server = Self::start("SeaweedFS", "s3", ports[0], "", command, folder);
        if let Running::Process(child) = &mut server.running {
            child.leftovers = leftovers.collect();
        }
        Some(server)
    }

    /// Azurite: Microsoft's own stand-in for its blob store. It checks signatures.
    pub(crate) fn azurite() -> Option<Self> {
        let mut command = Command::new(program("NEPA_AZURITE", "Azurite")?);
        let [port] = free_ports();
        let folder = tempfile::tempdir().unwrap();
        command
            .args(["--blobHost", "127.0.0.1", "--silent", "--disableTelemetry"])
            .args(["--blobPort", &port.to_string(), "--location"])
            .arg(folder.path());
        Some(Self::start("Azurite", "az", port, ACCOUNT, command, folder))
    }

    fn start(
        name: &'static str,
        scheme: &'static str,
        port: u16,
        path: &str,
        mut command: Command,
        folder: TempDir,
    ) -> Self {
        let log = folder.path().join("server.log");
        let file = std::fs::File::create(&log).unwrap();
        let child = command
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut child = KilledAtTheEnd {
            child,
            leftovers: Vec::new(),
        };
        let since = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = child.child.try_wait().unwrap();
            if ended.is_some() || since.elapsed() > Duration::from_mins(1) {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                panic!("{name} does not answer on port {port} (ended: {ended:?}):\n{said}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Self {
            name,
            scheme,
            endpoint: format!(
                "http://127.0.0.1:{port}{}{path}",
                if path.is_empty() { "" } else { "/" }
            ),
            running: Running::Process(child),
            _folder: folder,
        }
    }

    /// Our server, for what no other can do.
    pub(crate) fn in_process(&self) -> &S3Server {
        match &self.running {
            Running::Here(server) => server,
            Running::Process(_) => panic!("{} runs in a process of its own", self.name),
        }
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// `SCHEME://BUCKET/KEY`.
    pub(crate) fn url(&self, bucket: &str, key: &str) -> String {
        format!("{}://{bucket}/{key}", self.scheme)
    }

    /// The environment of a program that uses this server.
    pub(crate) fn env(&self) -> Vec<(&'static str, String)> {
        self.env_through(&self.endpoint)
    }

    /// The same by way of another address.
    pub(crate) fn env_through(&self, endpoint: &str) -> Vec<(&'static str, String)> {
        let of = |pairs: [(&'static str, &str); 4]| {
            pairs.map(|(name, value)| (name, value.to_owned())).to_vec()
        };
        if self.scheme == "az" {
            return of([
                ("AZURE_STORAGE_ENDPOINT", endpoint),
                ("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT),
                ("AZURE_STORAGE_ACCOUNT_KEY", ACCOUNT_KEY),
                ("AZURE_ALLOW_HTTP", "true"),
            ]);
        }
        of([
            ("AWS_ENDPOINT_URL", endpoint),
            ("AWS_ACCESS_KEY_ID", KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
            ("AWS_REGION", "us-east-1"),
        ])
    }

    /// Makes a bucket (Azure: a container) by a signed request; waits until the server is ready for it.
    pub(crate) fn create_bucket(&self, bucket: &str) {
        if let Running::Here(server) = &self.running {
            return server.create_bucket(bucket);
        }
        let since = Instant::now();
        while let Err(said) = self.try_create_bucket(bucket) {
            assert!(
                since.elapsed() < Duration::from_mins(1),
                "{} makes no bucket: {said}",
                self.name
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn try_create_bucket(&self, bucket: &str) -> Result<(), String> {
        let query = if self.scheme == "az" {
            "?restype=container"
        } else {
            ""
        };
        let mut request: HttpRequest =
            http::Request::put(format!("{}/{bucket}{query}", self.endpoint))
                .header("content-length", "0")
                .body(HttpRequestBody::empty())
                .unwrap();
        if self.scheme == "az" {
            let key = AzureCredential::AccessKey(AzureAccessKey::try_new(ACCOUNT_KEY).unwrap());
            let signer = AzureAuthorizer::new(&key, ACCOUNT);
            signer.try_authorize(&mut request).unwrap();
        } else {
            let key = AwsCredential {
                key_id: KEY.to_owned(),
                secret_key: SECRET.to_owned(),
                token: None,
            };
            let signer = AwsAuthorizer::new(&key, "s3", "us-east-1");
            signer.try_authorize(&mut request, None).unwrap();
        }
        let client = ReqwestConnector::default()
            .connect(&ClientOptions::new().with_allow_http(true))
            .unwrap();
        let answer = runtime()
            .block_on(async move { client.execute(request).await })
            .map_err(|error| error.to_string())?;
        // It may be there from a try whose answer was lost.
        if answer.status().is_success() || answer.status() == 409 {
            return Ok(());
        }
        Err(answer.status().to_string())
    }

    fn open(&self, bucket: &str, key: &str) -> StoreUrl {
        let io = IoConfig {
            store_options: StoreOptions::new(self.env()),
            ..IoConfig::default()
        };
        open_url(&self.url(bucket, key), &io).unwrap()
    }

    /// Puts all files of a folder below a prefix.
    pub(crate) fn upload(&self, folder: &Path, bucket: &str, prefix: &str) {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            let bytes = std::fs::read(entry.path()).unwrap();
            let place = self.open(bucket, &format!("{prefix}/{name}"));
            runtime()
                .block_on(async move { place.store.put(&place.path, bytes.into()).await })
                .unwrap();
        }
    }

    /// Brings all objects below a prefix into a folder and says their names.
    pub(crate) fn download(&self, bucket: &str, prefix: &str, folder: &Path) -> Vec<String> {
        use futures::TryStreamExt;
        let place = self.open(bucket, prefix);
        let found = runtime().block_on(async move {
            let listed = place
                .store
                .list(Some(&place.path))
                .try_collect::<Vec<_>>()
                .await?;
            let mut found = Vec::new();
            for object in listed {
                let bytes = place.store.get(&object.location).await?.bytes().await?;
                found.push((object.location.to_string(), bytes));
            }
            Ok::<_, object_store::Error>(found)
        });
        let mut names = Vec::new();
        for (key, bytes) in found.unwrap() {
            let name = key
                .strip_prefix(&format!("{prefix}/"))
                .unwrap_or(&key)
                .to_owned();
            let path = folder.join(&name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
            names.push(name);
        }
        names.sort();
        names
    }
}

/// Threads for the requests of the tests themselves.
fn runtime() -> IoRuntime {
    static RUNTIME: std::sync::OnceLock<IoRuntime> = std::sync::OnceLock::new();
    RUNTIME.get_or_init(|| IoRuntime::new(2).unwrap()).clone()
}

/// The server's program, or a word that it is not there.
fn program(variable: &str, name: &str) -> Option<std::ffi::OsString> {
    let path = std::env::var_os(variable).filter(|path| !path.is_empty());
    if path.is_none() {
        println!("SKIPPED: {variable} names no {name}; scripts/stores.sh installs it");
    }
    path
}

/// Ports of loopback that nobody listens on, all different, and not among those that the system lends to connections.
fn free_ports<const N: usize>() -> [u16; N] {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = 200 * (std::process::id() % 50);
    std::array::from_fn(|_| {
        loop {
            let number = first + NEXT.fetch_add(1, Ordering::Relaxed);
            let port = 20_000 + (number % 12_000) as u16;
            if TcpListener::bind(("127.0.0.1", port)).is_ok() {
                return port;
            }
        }
    })
}
