//! A profile as a page: one HTML file, the verdict in words first.
use maud::{Markup, html};
use nepa_pipeline::{decode_rgb, redact};

use super::captured::SlowImage;
use super::histogram::{Bucket, Histogram};
use super::ladder::{Limit, Rate};
use super::moments::{Moment, STAGES};
use super::report::Report;
use super::rungs::{Rung, rungs};
use super::verdict::signed;
use crate::console::words::{self, counted, digits};
use crate::page::{Curve, Plot, data_url, document, figure};

const STYLE: &str = include_str!("page.css");
/// Bars end at so many times the rate that the ceilings allow.
const LONGEST_BAR: f64 = 3.0;
/// Longer side of the picture of an image, in pixels.
const PICTURE: u32 = 360;

impl Report {
    /// The page.
    pub(crate) fn html(&self) -> anyhow::Result<String> {
        let mut plots = Vec::new();
        for plot in plots_of(&self.moments) {
            plots.extend(plot.draw()?.map(|drawing| figure(&plot, &drawing)));
        }
        let rungs = rungs(&serde_json::to_value(&self.ladder)?);
        let shown = &self.urls.join(" ");
        let title = "What limits the loader";
        let body = html! {
            h1 { (title) }
            p.lead { (redact(shown)) ": " (self.settings()) }
            (self.said())
            h2 { "Ceilings: each stage by itself, images a second" }
            (self.ladder(&rungs))
            p.note {
                "The line within a bar goes from the least to the greatest of all rounds. The dashed \
                 line is the rate that the lowest ceiling allows."
            }
            (self.what_if())
            @if !plots.is_empty() {
                h2 { "The last trial as it is" }
                div.plots { @for plot in &plots { (plot) } }
            }
            h2 { "Single requests and images" }
            div.plots {
                (histogram("Time to the first byte", "request", &self.store.first_byte))
                (histogram("Time to decode", "image", &self.survey.costs))
            }
            (self.formats())
            @if !self.survey.slowest.is_empty() {
                h2 { "The slowest images" }
                div.slow { @for slow in &self.survey.slowest { (slow_image(slow)) } }
            }
        };
        Ok(document(title, STYLE, &body).into_string())
    }

    fn settings(&self) -> String {
        let mut settings = format!(
            "{} px, batch {}, {} of {}, {} requests; {}",
            self.image_size,
            words::count(self.batch as u64),
            counted(self.decode_threads as u64, "decode thread"),
            counted(self.cores as u64, "core"),
            self.max_requests,
            counted(self.rounds as u64, "round")
        );
        if let Some(first) = self.first_batch {
            let seconds = self.open_s + first.seconds;
            settings += &format!("; first batch after {seconds:.2} s");
        }
        if let Some(memory) = self.memory_bytes {
            settings += &format!("; {} of memory", words::bytes(memory));
        }
        settings
    }

    /// The verdict in words.
    fn said(&self) -> Markup {
        let Rate {
            median,
            least,
            most,
        } = self.images_per_second;
        let limit = capitalised(self.verdict.limit.says());
        html! {
            ul.said {
                li {
                    b { (digits(median)) " images a second" }
                    " (" (digits(least)) " to " (digits(most)) "), "
                    (digits(self.cpu_ms_per_image)) " CPU-ms an image, "
                    (format!("{:.2}", self.cpu_cores_used)) " of "
                    (counted(self.cores as u64, "core")) "."
                }
                @for (number, cause) in self.verdict.causes.iter().enumerate() {
                    li {
                        @if number == 0 { b { (limit) " limits: " (cause.name) ". " } }
                        @else { b { "Also: " (cause.name) ". " } }
                        (sentence(&cause.because)) " " (cause.advice)
                        @if let Some(set) = &cause.set { " " code { "--set " (set) } }
                    }
                }
                @if self.cut_off {
                    li.caution { b { "Note: " } "ended by a signal; what was measured until then." }
                }
                @for note in &self.verdict.notes { li.caution { b { "Note: " } (note) } }
            }
        }
    }

    /// The key of the rung that limits.
    fn limiting(&self) -> &'static str {
        let unpacks = self
            .verdict
            .causes
            .first()
            .is_some_and(|cause| cause.name == "unpacking");
        match self.verdict.limit {
            Limit::Store => "store",
            Limit::Processor if unpacks => "unpack",
            Limit::Processor => "decode",
            Limit::Assembly => "assembly",
            Limit::Consumer => "consumer",
        }
    }

    fn ladder(&self, rungs: &[Rung]) -> Markup {
        let expected = self.expected_images_per_second;
        let most = rungs.iter().map(|rung| rung.rate.most).fold(0.0, f64::max);
        let end = most.min(LONGEST_BAR * expected).max(1e-9);
        let percent = |rate: f64| format!("{:.2}%", 100.0 * (rate / end).clamp(0.0, 1.0));
        html! {
            ul.rungs {
                @for rung in rungs {
                    @let Rate { median, least, most } = rung.rate;
                    @let limits = rung.key == self.limiting();
                    li.limits[limits] {
                        div.head {
                            span { (rung.name()) @if limits { " " b { "limits" } } }
                            span.rate {
                                (digits(median))
                                @if most > least {
                                    " " small { (digits(least)) " to " (digits(most)) }
                                }
                            }
                        }
                        div.track aria-hidden="true" {
                            div.bar style={ "width: " (percent(median)) } {}
                            @if most > least && least < end {
                                div.whisker style={
                                    "left: " (percent(least)) "; width: "
                                    (percent(most.min(end) - least))
                                } {}
                            }
                            @if most > end { span.beyond { "▸" } }
                            div.ceiling style={ "left: " (percent(expected)) } {}
                        }
                    }
                }
            }
        }
    }

    fn what_if(&self) -> Markup {
        let rows = &self.verdict.what_if;
        html! {
            @if !rows.is_empty() {
                h2 { "What if" }
                div.scroll role="region" tabindex="0" aria-label="What if" {
                    table {
                        thead {
                            tr {
                                th scope="col" { "Change" }
                                th.number scope="col" { "images/s" }
                                th.number scope="col" { "gain" }
                                th.number scope="col" { "of all rounds" }
                            }
                        }
                        tbody {
                            @for row in rows {
                                tr {
                                    td.change {
                                        (row.change)
                                        @if !row.measured { " (computed)" }
                                        @if let Some(set) = &row.set { br; code { "--set " (set) } }
                                    }
                                    td.number { (digits(row.rate.median)) }
                                    td.number { (signed(row.gain)) }
                                    @let [least, most] = row.gain_interval.map(signed);
                                    td.number { (least) " to " (most) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    fn formats(&self) -> Markup {
        html! {
            @if !self.survey.formats.is_empty() {
                h3 style="margin-top: 1.6rem" { "Formats, one thread by itself" }
                div.scroll role="region" tabindex="0" aria-label="Formats" {
                    table {
                        thead {
                            tr {
                                th scope="col" { "Format" }
                                @for name in ["images", "ms", "KiB", "Mpx"] {
                                    th.number scope="col" { (name) }
                                }
                            }
                        }
                        tbody {
                            @for cost in &self.survey.formats {
                                tr {
                                    td { (cost.format) }
                                    td.number { (words::count(cost.images as u64)) }
                                    td.number { (format!("{:.2}", cost.ms)) }
                                    td.number { (format!("{:.0}", cost.bytes / 1024.0)) }
                                    td.number { (format!("{:.2}", cost.megapixels)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// With a capital and a full stop.
fn sentence(text: &str) -> String {
    capitalised(text) + "."
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters
        .next()
        .map(|letter| letter.to_uppercase().to_string());
    first.unwrap_or_default() + letters.as_str()
}

/// The rate and the shares of the stages over the time of a trial.
fn plots_of(moments: &[Moment]) -> Vec<Plot> {
    if moments.len() < 2 {
        return Vec::new();
    }
    let plot = |name: &str, title: &str, caption: &str, curves| Plot {
        name: name.to_owned(),
        title: title.to_owned(),
        caption: caption.to_owned(),
        x_axis: "seconds",
        logarithmic: false,
        bands: false,
        epochs: Vec::new(),
        curves,
    };
    let curve = |name: &str, colour: usize, value: &dyn Fn(&Moment) -> f64| {
        Curve::line(
            name,
            colour,
            1,
            moments.iter().map(|moment| (moment.at_s, value(moment))),
        )
    };
    let images = curve("images/s", 0, &|moment| moment.images_a_second);
    let bytes = curve("MB/s", 2, &|moment| moment.bytes_a_second / 1e6);
    let busy = STAGES
        .iter()
        .enumerate()
        .map(|(stage, name)| curve(name, stage, &|moment| 100.0 * moment.busy[stage]));
    let mut plots = vec![plot(
        "images",
        "Images decoded a second",
        "At the batches' pace where the consumer is slower.",
        vec![images],
    )];
    if moments.iter().any(|moment| moment.bytes_a_second > 0.0) {
        plots.push(plot(
            "bytes",
            "Bytes from the store, MB/s",
            "In bursts where windows of the order are waited for.",
            vec![bytes],
        ));
    }
    plots.push(plot(
        "busy",
        "Share at work, %",
        "Of the requests that are allowed, of the decode threads (unpacking, decoding), of the \
         consumer.",
        busy.collect(),
    ));
    plots
}

/// Times as columns; nothing where there are none.
fn histogram(title: &str, what: &str, Histogram(buckets): &Histogram) -> Markup {
    let most = buckets.iter().map(|bucket| bucket.count).max().unwrap_or(0);
    let all = buckets.iter().map(|bucket| bucket.count).sum::<u64>();
    let says = |bucket: &Bucket| {
        format!(
            "{} to {}: {}",
            time(bucket.from_s),
            time(bucket.to_s),
            counted(bucket.count, what)
        )
    };
    html! {
        @if let (Some(first), Some(last)) = (buckets.first(), buckets.last()) {
            figure {
                h3 { (title) }
                div.histogram role="img"
                    aria-label=(buckets.iter().map(says).collect::<Vec<_>>().join("; ")) {
                    @for bucket in buckets {
                        i style={
                            "height: "
                            (format!("{:.1}", 100.0 * bucket.count as f64 / most.max(1) as f64)) "%"
                        } title=(says(bucket)) {}
                    }
                }
                div.scale {
                    span { (time(first.from_s)) }
                    @if buckets.len() > 4 { span { (time(buckets[buckets.len() / 2].from_s)) } }
                    span { (time(last.to_s)) }
                }
                figcaption {
                    (counted(all, what)) "; each column is 1.26 times as late as the one before."
                }
            }
        }
    }
}

fn time(seconds: f64) -> String {
    if seconds < 1.0 {
        format!("{} ms", digits(1e3 * seconds))
    } else {
        format!("{} s", digits(seconds))
    }
}

fn slow_image(slow: &SlowImage) -> Markup {
    let picture = picture(slow);
    html! {
        figure {
            @if let Some(picture) = picture { img src=(picture) alt=(slow.form); }
            figcaption { b { (digits(slow.ms)) " ms" } " " (slow.form) br; (redact(&slow.place)) }
        }
    }
}

/// A small form of it, within the page.
fn picture(slow: &SlowImage) -> Option<String> {
    let rgb = decode_rgb(&slow.bytes, true).ok()?;
    let image = image::RgbImage::from_raw(rgb.width, rgb.height, rgb.data)?;
    let longer = image.width().max(image.height());
    if longer <= PICTURE {
        return data_url(&image).ok();
    }
    let small = |length: u32| (u64::from(length) * u64::from(PICTURE) / u64::from(longer)).max(1);
    let (width, height) = (small(image.width()) as u32, small(image.height()) as u32);
    data_url(&image::imageops::thumbnail(&image, width, height)).ok()
}
