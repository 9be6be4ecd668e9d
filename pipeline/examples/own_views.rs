//! An augmentation and a column of the program's own, through the loader's public API alone.
//!
//! Cuts each image into its left and its right half, and prints how bright both are beside the
//! value of a column that the shards have: a caption, boxes, an identifier, whatever its type.
//!
//! `cargo run --release -p nepa-pipeline --example own_views -- URL COLUMN`
use anyhow::{Context, Result, bail};
use arrow::util::display::array_value_to_string;
use nepa_pipeline::{
    Augment, CropPlan, CropRect, EdgeSupport, Filter, Loader,
    random::{Stream, unit},
};

/// The left and the right half, half of all images mirrored.
#[derive(Debug)]
struct Halves {
    size: u32,
}

impl Augment for Halves {
    fn view_sides(&self) -> Vec<u32> {
        vec![self.size; 2]
    }

    fn draw(&self, width: u32, height: u32, stream: &mut Stream) -> Vec<CropPlan> {
        // From the sample's own stream, so that a run can be repeated and resumed.
        let flip = unit(stream) < 0.5;
        let half = f64::from(width) / 2.0;
        let view = |x| CropPlan {
            rect: CropRect {
                x,
                y: 0.0,
                width: half,
                height: f64::from(height),
            },
            flip,
            output_size: self.size,
            filter: Filter::Bilinear,
            edge: EdgeSupport::Rect,
            operations: Vec::new(),
            erase: None,
        };
        vec![view(0.0), view(half)]
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, column] = &arguments[..] else {
        bail!("usage: own_views URL COLUMN");
    };
    let loader = Loader::builder(url)
        .batch_size(4)
        .augment_by(Halves { size: 32 })
        .extra_columns([column])
        .open_as::<u8>(None)?;
    for batch in loader.take(4) {
        let batch = batch?;
        let columns = batch.columns().context("no column was asked for")?;
        for i in 0..batch.len() {
            let mean = |view| {
                let pixels: &[u8] = batch.view(i, view);
                pixels.iter().map(|&value| f64::from(value)).sum::<f64>() / pixels.len() as f64
            };
            let value = array_value_to_string(columns.column(0), i)?;
            println!("left {:5.1}  right {:5.1}  {value}", mean(0), mean(1));
        }
    }
    Ok(())
}
