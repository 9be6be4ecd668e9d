//! LayerScale (arXiv 2103.17239) multiplied into the linear layers before it: the same function
//! with fewer weights, as `--disable_layerscale` of the published conversion makes it.
use crate::{NepaConfig, ParamSpec, Weights};

/// The linear layers that a LayerScale follows, and that LayerScale, within a block.
const SCALED: [(&str, &str); 2] = [
    ("attention.output.dense", "layer_scale.lambda1"),
    ("output.dense", "output.layer_scale.lambda1"),
];

/// The LayerScale that follows the linear layer of this weight or bias, by its published name.
fn scale_of(name: &str) -> Option<String> {
    let (layer, part) = name.rsplit_once('.')?;
    if !["weight", "bias"].contains(&part) {
        return None;
    }
    let (block, scale) = SCALED
        .iter()
        .find_map(|(linear, scale)| Some((layer.strip_suffix(linear)?, scale)))?;
    Some(format!("{block}{scale}"))
}

/// A model that computes the same without LayerScale: each `lambda1` is multiplied into the rows of
/// weight and bias of the linear layer before it. Without LayerScale, model and weights as they are.
pub fn fold_layerscale(config: &NepaConfig, weights: &Weights) -> (NepaConfig, Weights) {
    let mut config = config.clone();
    config.layerscale_value = None;
    let specs = ParamSpec::all(&config);
    let mut flat = Vec::with_capacity(specs.iter().map(ParamSpec::len).sum());
    for spec in &specs {
        let (_, values) = weights
            .get(&spec.name)
            .unwrap_or_else(|| panic!("{} is a weight with or without LayerScale", spec.name));
        let scale = scale_of(&spec.name).and_then(|scale| weights.get(&scale));
        match scale {
            Some((_, scale)) => {
                let row = spec.len() / scale.len();
                let rows = values.chunks_exact(row).zip(scale);
                flat.extend(rows.flat_map(|(row, scale)| row.iter().map(move |w| w * scale)));
            }
            None => flat.extend_from_slice(values),
        }
    }
    (config, Weights { specs, flat })
}
