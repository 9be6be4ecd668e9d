use std::sync::atomic::AtomicUsize;

use object_store::client::{HttpError, HttpErrorKind};
use tracing::field::{Field, Visit};

use super::*;

/// Keeps the lines of the log of this thread.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    fn taken(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Visit for Lines {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0.lock().unwrap().push(format!("{value:?}"));
        }
    }
}

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut self.clone());
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

fn http_error(kind: HttpErrorKind, source: std::io::Error) -> object_store::Error {
    object_store::Error::Generic {
        store: "S3",
        source: Box::new(HttpError::new(kind, source)),
    }
}

fn refused() -> object_store::Error {
    http_error(
        HttpErrorKind::Connect,
        std::io::ErrorKind::ConnectionRefused.into(),
    )
}

fn reset() -> object_store::Error {
    http_error(
        HttpErrorKind::Interrupted,
        std::io::ErrorKind::ConnectionReset.into(),
    )
}

fn patience(limit_s: u64) -> Patience {
    Patience::new("s3://bucket", Duration::from_secs(limit_s))
}

/// A store that fails until `back`.
async fn fails_until(
    patience: &Patience,
    back: Instant,
    error: fn() -> object_store::Error,
) -> object_store::Result<u32> {
    let answer = || async move {
        if Instant::now() < back {
            Err(error())
        } else {
            Ok(7)
        }
    };
    patience.repeat(answer).await
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_waited_out_with_one_line_for_all_requests() {
    let lines = Lines::default();
    let _log = tracing::subscriber::set_default(lines.clone());
    let patience = patience(600);
    patience.heard();
    let start = Instant::now();
    let back = start + Duration::from_secs(63);
    let requests = (0..100).map(|_| fails_until(&patience, back, refused));
    let answers = futures::future::join_all(requests).await;
    assert!(answers.iter().all(|answer| matches!(answer, Ok(7))));
    // Once one is answered, the others ask at once.
    assert!(
        start.elapsed() < Duration::from_secs(73),
        "{:?}",
        start.elapsed()
    );
    let said = lines.taken();
    assert_eq!(said.len(), 7, "{said:#?}");
    assert_eq!(
        said[1],
        "s3://bucket does not answer (connection refused) for 20 s; waiting up to 600 s (io.outage_s)"
    );
    assert!(
        said[6].starts_with("s3://bucket answers again after 6"),
        "{said:#?}"
    );
    // Another outage is told anew.
    let back = Instant::now() + Duration::from_secs(11);
    assert!(fails_until(&patience, back, reset).await.is_ok());
    let said = lines.taken();
    assert_eq!(said.len(), 2, "{said:#?}");
    assert!(
        said[0].contains("(connection closed) for 10 s"),
        "{said:#?}"
    );
}

#[tokio::test(start_paused = true)]
async fn short_failures_are_not_told() {
    let lines = Lines::default();
    let _log = tracing::subscriber::set_default(lines.clone());
    let patience = patience(600);
    patience.heard();
    for _ in 0..5 {
        let back = Instant::now() + Duration::from_secs(4);
        assert!(fails_until(&patience, back, reset).await.is_ok());
        tokio::time::sleep(Duration::from_mins(5)).await;
    }
    assert!(lines.taken().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_is_told_though_nothing_fails() {
    let lines = Lines::default();
    let _log = tracing::subscriber::set_default(lines.clone());
    let patience = patience(600);
    let mut attempts = patience.attempts();
    let hanging = async {
        tokio::time::sleep(Duration::from_secs(25)).await;
    };
    attempts.run(hanging).await;
    let said = lines.taken();
    assert_eq!(said.len(), 2, "{said:#?}");
    assert!(
        said[0].contains("s3://bucket does not answer (no answer yet) for 10 s"),
        "{said:#?}"
    );
    assert_eq!(patience.silent_for().unwrap().as_secs(), 25);
}

#[tokio::test(start_paused = true)]
async fn the_clock_ends_it_and_not_the_count() {
    let patience = patience(600);
    patience.heard();
    let start = Instant::now();
    let never = start + Duration::from_hours(24);
    let error = fails_until(&patience, never, refused).await.unwrap_err();
    let waited = start.elapsed();
    assert!((600..=611).contains(&waited.as_secs()), "{waited:?}");
    let object_store::Error::Generic { source, .. } = error else {
        panic!("{error}");
    };
    let in_vain = source.downcast_ref::<WaitedInVain>().unwrap();
    assert_eq!(in_vain.waited.as_secs(), 600);

    // What comes for the request itself begins its time anew; what comes for others does not.
    let mut attempts = patience.attempts();
    for _ in 0..3 {
        while attempts.waited < Duration::from_secs(500) {
            attempts.failed(refused()).await.unwrap();
        }
        attempts.progress();
    }
    let start = Instant::now();
    while attempts.failed(refused()).await.is_ok() {
        patience.heard();
    }
    assert!((600..=611).contains(&start.elapsed().as_secs()));
}

#[tokio::test(start_paused = true)]
async fn what_waiting_does_not_mend_ends_at_once() {
    let count = AtomicUsize::new(0);
    let not_found = || async {
        count.fetch_add(1, Relaxed);
        Err::<(), _>(object_store::Error::NotFound {
            path: "x".to_owned(),
            source: "404".into(),
        })
    };
    let patience = patience(600);
    let error = patience.repeat(not_found).await.unwrap_err();
    assert!(matches!(error, object_store::Error::NotFound { .. }));
    assert_eq!(count.load(Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_wrong_endpoint_is_told_at_once_and_an_overloaded_one_is_waited_for() {
    let patience = patience(600);
    let start = Instant::now();
    let later = start + Duration::from_secs(30);
    let error = fails_until(&patience, later, refused).await.unwrap_err();
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    assert!(!error.to_string().contains("waited"), "{error}");
    assert!(fails_until(&patience, later, reset).await.is_ok());
    // Now it has answered: the next refused connection is an outage.
    let later = Instant::now() + Duration::from_secs(30);
    assert!(fails_until(&patience, later, refused).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn waiting_in_another_queue_is_no_outage() {
    let patience = patience(600);
    patience.heard();
    let mut attempts = patience.attempts();
    for _ in 0..5 {
        // For a slot, or for whoever takes the bytes.
        tokio::time::sleep(Duration::from_mins(20)).await;
        attempts.run(std::future::ready(())).await;
        attempts.failed(reset()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_opens_a_store_twice_hears_of_its_outage_once() {
    let lines = Lines::default();
    let _log = tracing::subscriber::set_default(lines.clone());
    let [data, out, other] = ["http://a", "http://a", "http://b"]
        .map(|endpoint| Patience::shared("s3://twice", endpoint, Duration::from_mins(10)));
    data.heard();
    let back = Instant::now() + Duration::from_secs(25);
    let both = [&data, &out].map(|patience| fails_until(patience, back, refused));
    let answers = futures::future::join_all(both).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    let said = lines.taken();
    let again = |line: &&String| line.contains("answers again");
    assert_eq!(said.iter().filter(again).count(), 1, "{said:?}");
    // One line every ten seconds, not one for each of the two.
    assert!((3..=4).contains(&said.len()), "{said:?}");
    assert!(out.state().begun && !other.state().begun);
}
