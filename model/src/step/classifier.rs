//! The end of a classifier: what it takes of the stream, and its head, which the host computes in
//! wide values. Of the stream only one row an image travels.
use super::device::{Device, Pool, PoolBackward};
use super::options::StepOptions;
use super::places::{HeadPlaces, Layout};
use super::step::Step;
use crate::cpu::head::{Head, HeadPass};
use crate::{ModelError, NepaConfig};

/// What the head's way back needs of its way forward.
#[derive(Debug)]
pub(crate) struct Classified<T> {
    places: HeadPlaces,
    /// All weights of the head.
    weights: Vec<T>,
    pooled: Vec<T>,
    pass: HeadPass<T>,
}

impl<T> Classified<T> {
    /// `[B, K]`.
    pub(crate) fn logits(&self) -> &[T] {
        &self.pass.logits
    }
}

impl<D: Device> Step<D> {
    /// Bytes of the host's memory that the head of a classifier takes for a while, beside what the
    /// device takes.
    pub fn host_bytes(config: &NepaConfig, options: &StepOptions) -> u64 {
        let layout = Layout::new(config);
        let values = layout.head.map_or(0, |head| {
            // Weights and gradient; then rows as the head gets them, their norm, and the gradients
            // of both, one of them twice; then logits and their gradient, one of them twice.
            let rows = 5 * config.hidden_size + 3 * head.bias.len();
            2 * head.all.len() + options.images * rows
        });
        (values * size_of::<D::Wide>()) as u64
    }

    /// What the head of a classifier gets after a forward pass, `[B, D]`: of the final norm the mean
    /// over all patches where the model has a pooling layer, else the last token. Its own norm
    /// (`fc_norm`) comes after.
    pub fn read_pooled(&mut self) -> Result<Vec<D::Wide>, D::Error> {
        let pool = self.pool()?;
        self.device.pool(&pool)?;
        let mut pooled = vec![D::Wide::default(); pool.pooled.len];
        self.device.read(pool.pooled, &mut pooled)?;
        Ok(pooled)
    }

    /// What a classifier says of each image of the forward pass before, `[B, K]`.
    pub fn logits(&mut self) -> Result<Vec<D::Wide>, D::Error> {
        Ok(self.classify()?.pass.logits)
    }

    pub(crate) fn classify(&mut self) -> Result<Classified<D::Wide>, D::Error> {
        let pooled = self.read_pooled()?;
        let places = self.head()?.clone();
        let region = self.weight(places.all.start, places.all.len());
        let mut weights = vec![D::Wide::default(); region.len];
        self.device.read(region, &mut weights)?;
        let head = Head {
            values: &weights,
            places: &places,
            eps: self.config.layer_norm_eps,
        };
        let pass = head.forward(&pooled);
        Ok(Classified {
            places,
            weights,
            pooled,
            pass,
        })
    }

    /// From the gradient of the logits, `[B, K]`, to that of the stream; adds those of the head and
    /// of the final norm.
    pub(crate) fn classify_backward(
        &mut self,
        found: &Classified<D::Wide>,
        d_logits: &[D::Wide],
    ) -> Result<(), D::Error> {
        let Classified {
            places,
            weights,
            pooled,
            pass,
        } = found;
        let region = self.gradient(places.all.start, places.all.len());
        let mut gradient = vec![D::Wide::default(); region.len];
        self.device.read(region, &mut gradient)?;
        let head = Head {
            values: weights,
            places,
            eps: self.config.layer_norm_eps,
        };
        let d_pooled = head.backward(pooled, pass, d_logits, &mut gradient);
        self.device.write(region, &gradient)?;

        let Pool {
            rows,
            taken,
            x,
            weight,
            ..
        } = self.pool()?;
        let region = self.regions.d_pooled.first(d_pooled.len());
        self.device.write(region, &d_pooled)?;
        let [d_weight, d_bias] = self.final_norm_gradients();
        self.device.pool_backward(&PoolBackward {
            rows,
            taken,
            x,
            weight,
            d_pooled: region,
            dx: self.d_stream(),
            d_weight,
            d_bias,
            added: self.last_branch_gradient(),
            partials: self.partials(),
        })
    }

    fn head(&self) -> Result<&HeadPlaces, ModelError> {
        self.layout.head.as_ref().ok_or(ModelError::Step {
            reason: "its model is no classifier: it has no head",
        })
    }

    fn pool(&self) -> Result<Pool, ModelError> {
        let (head, shape) = (self.head()?, self.shape);
        if shape.tokens != shape.patches + 1 {
            return Err(ModelError::Step {
                reason: "a classifier sees all patches: some are no tokens here",
            });
        }
        let norm = self.final_norm();
        Ok(Pool {
            rows: self.rows(),
            taken: head.norm.as_ref().map_or(1, |_| shape.patches),
            x: self.stream(shape.blocks),
            weight: norm.weight,
            bias: norm.bias,
            pooled: self.regions.pooled.first(shape.images * shape.width),
        })
    }
}
