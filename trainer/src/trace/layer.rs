//! From spans of the `tracing` crate to lines of the trace.
use std::cell::Cell;
use std::fmt::{Debug, Write as _};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::Instant;

use nepa_pipeline::{SPANS_ACROSS_THREADS, SPANS_ON_A_THREAD, redact};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, Filter};
use tracing_subscriber::registry::LookupSpan;

use super::file::{Line, Span, with_file};

/// Whether spans are recorded.
static RECORDS: AtomicBool = AtomicBool::new(false);

/// Records spans from now on, or no longer. The places where spans begin are asked anew, and those
/// that nobody subscribes to cost one load each.
pub(super) fn record(records: bool) {
    if RECORDS.swap(records, Relaxed) != records {
        tracing::callsite::rebuild_interest_cache();
    }
}

/// What the program's subscriber is given; it does nothing until something is recorded.
pub(crate) fn layer<S>() -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    Spans.with_filter(OurSpans)
}

/// Our spans, while something is recorded.
struct OurSpans;

impl OurSpans {
    fn takes(metadata: &Metadata<'_>) -> bool {
        metadata.is_span()
            && [SPANS_ON_A_THREAD, SPANS_ACROSS_THREADS].contains(&metadata.target())
            && RECORDS.load(Relaxed)
    }
}

impl<S> Filter<S> for OurSpans {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        Self::takes(metadata)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if Self::takes(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(if RECORDS.load(Relaxed) {
            LevelFilter::TRACE
        } else {
            LevelFilter::OFF
        })
    }
}

/// Writes each span when it ends.
struct Spans;

/// What is known of a span from its beginning on.
struct Begun {
    at: Instant,
    thread: u32,
    /// Fields, as members of a JSON object.
    fields: String,
}

impl<S> Layer<S> for Spans
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Members::default();
        attributes.record(&mut fields);
        span.extensions_mut().insert(Begun {
            at: Instant::now(),
            thread: thread(),
            fields: fields.0,
        });
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(begun) = span.extensions_mut().get_mut::<Begun>() {
            let mut fields = Members(std::mem::take(&mut begun.fields));
            values.record(&mut fields);
            begun.fields = fields.0;
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let end = Instant::now();
        let Some(span) = context.span(&id) else {
            return;
        };
        let extensions = span.extensions();
        let Some(begun) = extensions.get::<Begun>() else {
            return;
        };
        let across = (span.metadata().target() == SPANS_ACROSS_THREADS).then(|| {
            // A part of a request is shown in its row.
            span.parent()
                .map_or(id.into_u64(), |parent| parent.id().into_u64())
        });
        let line = Line::of(&Span {
            name: span.metadata().name(),
            begin: begun.at,
            end,
            thread: begun.thread,
            across,
            fields: &begun.fields,
        });
        with_file(|file| file.add(&line));
    }
}

/// A number for this thread; its name is written when it gets one.
fn thread() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    thread_local!(static OWN: Cell<u32> = const { Cell::new(0) });
    let own = OWN.get();
    if own > 0 {
        return own;
    }
    let own = NEXT.fetch_add(1, Relaxed);
    OWN.set(own);
    let name = std::thread::current()
        .name()
        .unwrap_or("no name")
        .to_owned();
    with_file(|file| file.add(&Line::thread_name(own, &name)));
    own
}

/// Fields of a span, as members of a JSON object.
#[derive(Default)]
struct Members(String);

impl Members {
    fn add(&mut self, field: &Field, value: impl std::fmt::Display) {
        let comma = if self.0.is_empty() { "" } else { "," };
        let _ = write!(self.0, "{comma}\"{}\":{value}", field.name());
    }
}

impl Visit for Members {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        // A URL may hold a secret.
        self.add(field, serde_json::Value::from(redact(value)));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}
