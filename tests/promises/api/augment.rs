//! An augmentation of the program's own.
use nepa_pipeline::{
    Augment, CpuRenderer, CropPlan, CropRect, EdgeSupport, Filter, LoaderError,
    random::{Stream, unit},
    read_header,
};
use nepa_tests::photos::{all_good, photo_at};

use super::builder;

fn plan(x: f64, width: f64, height: f64, output_size: u32, flip: bool) -> CropPlan {
    CropPlan {
        rect: CropRect {
            x,
            y: 0.0,
            width,
            height,
        },
        flip,
        output_size,
        filter: Filter::Bilinear,
        edge: EdgeSupport::Rect,
        operations: Vec::new(),
        erase: None,
    }
}

/// The left half and the right half of an image, that one larger and sometimes mirrored.
#[derive(Debug, Clone, Copy)]
struct Halves;

impl Augment for Halves {
    fn view_sides(&self) -> Vec<u32> {
        vec![6, 10]
    }

    fn draw(&self, width: u32, height: u32, stream: &mut Stream) -> Vec<CropPlan> {
        let (half, height) = (f64::from(width) / 2.0, f64::from(height));
        let left = plan(0.0, half, height, 6, false);
        vec![left, plan(half, half, height, 10, unit(stream) < 0.5)]
    }
}

#[test]
fn an_augmentation_of_ones_own_gives_the_pixels_of_its_plans() {
    let folder = all_good();
    let mut renderer = CpuRenderer::default();
    let mut mirrored = [0, 0];
    for batch in builder(&folder).augment_by(Halves).open().unwrap() {
        let batch = batch.unwrap();
        assert_eq!(batch.view_sides(), [6, 10]);
        for (i, sample) in batch.samples().iter().enumerate() {
            let id = sample.id;
            let photo = photo_at(id.shard, id.row_group, id.row);
            let header = read_header(&photo).unwrap();
            let (half, height) = (f64::from(header.width) / 2.0, f64::from(header.height));
            let flip = sample.views[1].flip;
            let halves = [
                plan(0.0, half, height, 6, false),
                plan(half, half, height, 10, flip),
            ];
            assert_eq!(sample.views, halves, "{id}");
            for (view, plan) in halves.iter().enumerate() {
                let mut expected = vec![0.0; 3 * (plan.output_size as usize).pow(2)];
                renderer.render_plan(&photo, plan, &mut expected).unwrap();
                assert_eq!(batch.view(i, view), expected, "{id}, view {view}");
            }
            mirrored[usize::from(flip)] += 1;
        }
    }
    // What it drew at random came from the sample's stream.
    assert_eq!(mirrored.iter().sum::<usize>(), 2 * 64);
    assert!(mirrored.iter().all(|&times| times > 16), "{mirrored:?}");
}

/// Draws views of other sides than it promises.
#[derive(Debug)]
struct Liar {
    promised: &'static [u32],
    drawn: &'static [u32],
}

impl Augment for Liar {
    fn view_sides(&self) -> Vec<u32> {
        self.promised.to_vec()
    }

    fn draw(&self, width: u32, height: u32, _: &mut Stream) -> Vec<CropPlan> {
        let (width, height) = (f64::from(width), f64::from(height));
        let sides = self.drawn.iter();
        sides
            .map(|&side| plan(0.0, width, height, side, false))
            .collect()
    }
}

#[test]
fn an_augmentation_that_draws_other_views_than_it_promises_ends_the_run() {
    let folder = all_good();
    for (promised, drawn) in [
        (&[6, 6][..], &[6][..]),
        (&[6], &[6, 6]),
        (&[6], &[8]),
        (&[6], &[]),
        (&[6, 10], &[10, 6]),
    ] {
        let loader = builder(&folder).augment_by(Liar { promised, drawn });
        let error = loader.open().unwrap().find_map(Result::err);
        let error = error.expect("this cannot go on");
        let LoaderError::Views {
            promised: said,
            drawn: found,
        } = &error
        else {
            panic!("{error}")
        };
        assert_eq!((&said[..], &found[..]), (promised, drawn));
        assert!(error.to_string().contains("view_sides()"), "{error}");
    }
    // None at all is refused at once.
    let none = Liar {
        promised: &[],
        drawn: &[],
    };
    let error = builder(&folder).augment_by(none).open().unwrap_err();
    assert!(matches!(error, LoaderError::Setting { .. }), "{error}");
}
