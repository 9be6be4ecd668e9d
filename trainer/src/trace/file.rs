//! The file of a trace: Chrome's JSON, whole after each write, and bounded.
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::console::print::message;
use crate::console::words;

/// The file takes no more than that, and no more spans.
const MOST_BYTES: u64 = 64 << 20;
const MOST_SPANS: u64 = 500_000;
/// Bytes that are kept back until they are written together.
const BUFFER: usize = 256 << 10;
/// The end of the file; what comes next is written over it.
const TAIL: &[u8] = b"\n]}\n";

/// The file that is written; one a process.
static FILE: Mutex<Option<TraceFile>> = Mutex::new(None);

fn file() -> MutexGuard<'static, Option<TraceFile>> {
    FILE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on this file is written, or none.
pub(super) fn set_file(new: Option<TraceFile>) {
    *file() = new;
}

/// Does something with the file, where there is one.
pub(super) fn with_file<T>(act: impl FnOnce(&mut TraceFile) -> T) -> Option<T> {
    file().as_mut().map(act)
}

/// Whether no more is taken, or there is no file.
pub(super) fn is_full() -> bool {
    with_file(|file| file.is_full).unwrap_or(true)
}

/// A span that has ended.
#[derive(Debug)]
pub(super) struct Span<'a> {
    pub(super) name: &'a str,
    pub(super) begin: Instant,
    pub(super) end: Instant,
    /// Number of the thread that it began on.
    pub(super) thread: u32,
    /// Number of its row, where it may overlap others of its thread.
    pub(super) across: Option<u64>,
    /// Members of a JSON object.
    pub(super) fields: &'a str,
}

/// A line of the file, or the two of a span across threads.
#[derive(Debug)]
pub(super) struct Line {
    text: String,
    is_span: bool,
}

/// Since when times are counted.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Nanoseconds as the file has times: in microseconds.
fn micros(nanos: u128) -> String {
    format!("{}.{:03}", nanos / 1000, nanos % 1000)
}

impl Line {
    pub(super) fn of(span: &Span<'_>) -> Self {
        let Span {
            name,
            thread,
            fields,
            ..
        } = span;
        let nanos = |at: Instant| at.saturating_duration_since(*START).as_nanos();
        let (begin, end) = (nanos(span.begin), nanos(span.end));
        let event = |phase: &str, nanos: u128, more: &str| {
            let ts = micros(nanos);
            format!(
                "{{\"ph\":\"{phase}\",\"name\":\"{name}\",\"pid\":1,\"tid\":{thread},\"ts\":{ts},{more}}}"
            )
        };
        let text = match span.across {
            None => {
                let lasts = micros(end - begin);
                event(
                    "X",
                    begin,
                    &format!("\"dur\":{lasts},\"cat\":\"thread\",\"args\":{{{fields}}}"),
                )
            }
            Some(id) => {
                let row = format!("\"cat\":\"across\",\"id\":\"{id:x}\"");
                let first = event("b", begin, &format!("{row},\"args\":{{{fields}}}"));
                format!("{first},\n{}", event("e", end, &row))
            }
        };
        Self {
            text,
            is_span: true,
        }
    }

    /// The name of a thread.
    pub(super) fn thread_name(thread: u32, name: &str) -> Self {
        let name = serde_json::Value::from(name);
        let text = format!(
            "{{\"ph\":\"M\",\"name\":\"thread_name\",\"pid\":1,\"tid\":{thread},\"ts\":0,\
             \"args\":{{\"name\":{name}}}}}"
        );
        Self {
            text,
            is_span: false,
        }
    }

    /// Something that is said at this moment.
    fn says(text: &str) -> Self {
        let ts = micros(START.elapsed().as_nanos());
        let text = format!(
            "{{\"ph\":\"i\",\"s\":\"g\",\"name\":\"{text}\",\"pid\":1,\"tid\":0,\"ts\":{ts}}}"
        );
        Self {
            text,
            is_span: false,
        }
    }
}

/// The trace cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the trace to {place}")]
pub(crate) struct TraceError {
    pub(super) place: String,
    pub(super) source: io::Error,
}

/// The file that is written.
#[derive(Debug)]
pub(super) struct TraceFile {
    file: File,
    /// Bytes in the file, without its tail.
    written: u64,
    buffer: Vec<u8>,
    spans: u64,
    most: (u64, u64),
    is_full: bool,
    failure: Option<io::Error>,
}

impl TraceFile {
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        Self::with_most(path, (MOST_BYTES, MOST_SPANS))
    }

    /// Of at most so many bytes and spans.
    fn with_most(path: &Path, most: (u64, u64)) -> io::Result<Self> {
        LazyLock::force(&START);
        let mut trace = Self {
            file: File::create(path)?,
            written: 0,
            buffer: Vec::with_capacity(BUFFER),
            spans: 0,
            most,
            is_full: false,
            failure: None,
        };
        trace.buffer.extend(
            b"{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n\
              {\"ph\":\"M\",\"name\":\"process_name\",\"pid\":1,\"tid\":0,\"ts\":0,\
              \"args\":{\"name\":\"nepa\"}}",
        );
        trace.write_out()?;
        Ok(trace)
    }

    /// Spans so far.
    pub(super) fn spans(&self) -> u64 {
        self.spans
    }

    /// Adds a line, unless the file is full.
    pub(super) fn add(&mut self, line: &Line) {
        if self.is_full || self.failure.is_some() {
            return;
        }
        let size = self.written + (self.buffer.len() + line.text.len() + TAIL.len()) as u64;
        let spans = self.spans + u64::from(line.is_span);
        if size > self.most.0 || spans > self.most.1 {
            self.close();
            return;
        }
        self.spans = spans;
        self.push(line);
        if self.buffer.len() >= BUFFER {
            self.flush();
        }
    }

    fn push(&mut self, line: &Line) {
        self.buffer.extend(b",\n");
        self.buffer.extend(line.text.as_bytes());
    }

    /// No more is taken; the file and the console say so.
    fn close(&mut self) {
        self.is_full = true;
        let says = format!(
            "the trace is full ({}, {}): what ended later is not in it",
            words::counted(self.spans, "span"),
            words::bytes(self.written + self.buffer.len() as u64)
        );
        self.push(&Line::says(&says));
        self.flush();
        message("warning: ", &says);
    }

    /// Writes what was kept back. An error is told once, at the end.
    pub(super) fn flush(&mut self) {
        if self.failure.is_none() {
            self.failure = self.write_out().err();
        }
    }

    fn write_out(&mut self) -> io::Result<()> {
        let size = self.buffer.len();
        self.buffer.extend(TAIL);
        self.file.seek(SeekFrom::Start(self.written))?;
        self.file.write_all(&self.buffer)?;
        self.written += size as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Writes what was kept back; an error of now or before.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        self.flush();
        self.failure.take().map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(path).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["traceEvents"].as_array().unwrap().clone()
    }

    fn line(across: Option<u64>) -> Line {
        Line::of(&Span {
            name: "decode",
            begin: *START + std::time::Duration::from_nanos(1_002_003),
            end: *START + std::time::Duration::from_nanos(3_001_001),
            thread: 7,
            across,
            fields: "\"row\":3",
        })
    }

    #[test]
    fn the_file_is_whole_after_each_write() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.json");
        let mut file = TraceFile::create(&path).unwrap();
        assert_eq!(read(&path).len(), 1);
        file.add(&Line::thread_name(7, "a \"b\""));
        file.add(&line(None));
        file.flush();
        let events = read(&path);
        assert_eq!(events[1]["args"]["name"], "a \"b\"");
        assert_eq!(
            events[2],
            serde_json::json!({"ph": "X", "name": "decode", "cat": "thread", "pid": 1, "tid": 7,
                "ts": 1002.003, "dur": 1998.998, "args": {"row": 3}})
        );
        file.add(&line(Some(5)));
        file.finish().unwrap();
        let events = read(&path);
        assert_eq!(events.len(), 5);
        assert_eq!(
            (&events[3]["ph"], &events[4]["ph"]),
            (&"b".into(), &"e".into())
        );
        assert_eq!(events[4]["ts"], 3001.001);
    }

    #[test]
    fn a_full_file_says_so_and_takes_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.json");
        for most in [(4096, 1000), (1 << 20, 5)] {
            let mut file = TraceFile::with_most(&path, most).unwrap();
            for _ in 0..100 {
                file.add(&line(Some(5)));
            }
            assert!(file.is_full);
            file.finish().unwrap();
            let events = read(&path);
            let last = events.last().unwrap()["name"].as_str().unwrap();
            assert!(last.starts_with("the trace is full"), "{last}");
            assert!(std::fs::metadata(&path).unwrap().len() < 8192);
            assert_eq!(events.len() as u64, 2 + 2 * file.spans());
        }
    }
}
