//! Serves a folder as an S3 bucket from memory, for scripts: prints the environment variables that lead a client here,
//! then runs until it is killed. `--help` names the options.
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use nepa_tests::s3::{Options, S3Server};

/// Serve a folder as an S3 bucket, from memory.
///
/// Prints lines of the form NAME=VALUE to set as environment variables, then `ready`.
#[derive(Debug, Parser)]
struct Args {
    /// Folder whose files are loaded; may be repeated.
    folder: Vec<PathBuf>,
    /// Bucket to make and to load the folders into.
    #[arg(long, default_value = "test")]
    bucket: String,
    /// Prefix of the loaded keys.
    #[arg(long, default_value = "")]
    prefix: String,
    /// Port; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Time to the first byte of each answer, in milliseconds.
    #[arg(long, default_value_t = 0)]
    latency_ms: u64,
    /// Most requests served at once; others wait, as for a free connection.
    #[arg(long)]
    max_connections: Option<usize>,
    /// Most megabytes a second of one answer.
    #[arg(long)]
    mbps: Option<f64>,
    /// Most megabytes a second of all answers together.
    #[arg(long)]
    line_mbps: Option<f64>,
    /// File to append a line to for each request: method, key, bytes asked for, status.
    #[arg(long)]
    log: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let server = S3Server::start_with(Options {
        port: args.port,
        latency: Duration::from_millis(args.latency_ms),
        max_connections: args.max_connections,
        bytes_per_s: args.mbps.map(|rate| rate * 1e6),
        line_bytes_per_s: args.line_mbps.map(|rate| rate * 1e6),
        ..Options::default()
    })?;
    server.create_bucket(&args.bucket);
    for folder in &args.folder {
        let count = server.load_folder(&args.bucket, &args.prefix, folder)?;
        eprintln!(
            "{count} objects from {} in s3://{}/{}",
            folder.display(),
            args.bucket,
            args.prefix
        );
    }
    for (name, value) in server.env() {
        println!("{name}={value}");
    }
    println!("ready");
    let Some(path) = args.log else {
        loop {
            std::thread::park();
        }
    };
    let mut log = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)?;
    loop {
        for request in server.take_log() {
            let num_bytes = request.range.map_or(0, |range| range.end - range.start);
            writeln!(
                log,
                "{} {} {num_bytes} {}",
                request.method, request.key, request.status
            )?;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
