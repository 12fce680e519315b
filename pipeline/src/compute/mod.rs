//! Engines that are made for speed, and what touches the disk: behind the feature `compute`, not pure.
//!
//! [`engine()`] makes the engine that a node config and a manifest ask for. In: a stage's model, settings and weights, a
//! device. Out: a boxed [`Engine`].

pub mod bench;
pub mod candle;
pub mod cpu;
pub mod folder;
pub mod gguf;
pub mod hf;
pub mod parity;

use std::sync::Arc;

use skein_protocol::{Manifest, run::Arithmetic};

use self::hf::Checkpoint;

use crate::{
    exact::{
        Bf16Instructions, Bf16Product, Bf16x3Product, Engine, EngineError, FixedProduct, Instructions, Settings,
        StageEngine, StageWeights,
    },
    model::{StageModel, init},
    worker::Engines,
};

/// Where an engine computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// Threads that the user gives; at least 1.
    Cpu { threads: usize },
    /// CUDA device by index: needs the feature `cuda`.
    Cuda(usize),
    /// Metal device by index: needs the feature `metal`.
    Metal(usize),
}

impl Device {
    /// Whether an engine of this device has that arithmetic.
    pub fn computes(self, arithmetic: Arithmetic) -> bool {
        match self {
            Device::Cpu { .. } => true,
            Device::Cuda(_) => arithmetic != Arithmetic::Repeatable,
            Device::Metal(_) => matches!(arithmetic, Arithmetic::F32 | Arithmetic::Bf16x3),
        }
    }
}

/// As the configuration names it.
impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu { .. } => write!(f, "cpu"),
            Device::Cuda(index) => write!(f, "cuda:{index}"),
            Device::Metal(_) => write!(f, "metal"),
        }
    }
}

/// The first graphics card that this build can use and that computes rightly; else `cpu`. Beside it, what did not pass and why.
pub fn best(cpu: Device) -> (Device, Vec<(Device, String)>) {
    let cards = [(cfg!(feature = "cuda"), Device::Cuda(0)), (cfg!(feature = "metal"), Device::Metal(0))];
    let mut broken = Vec::new();
    for (_, card) in cards.into_iter().filter(|(built, _)| *built) {
        match candle::test(card) {
            Ok(()) => return (card, broken),
            Err(error) => broken.push((card, error.to_string())),
        }
    }
    (cpu, broken)
}

/// The engine for one stage.
pub fn engine(
    device: Device,
    arithmetic: Arithmetic,
    model: StageModel,
    settings: Settings,
    weights: impl Into<StageWeights>,
) -> Result<Box<dyn Engine>, EngineError> {
    match (device, arithmetic) {
        (Device::Cpu { threads }, Arithmetic::F32 | Arithmetic::Repeatable) => {
            // The order of the repeatable product costs nothing where the processor has fused multiply-adds.
            let product = match arithmetic {
                Arithmetic::Repeatable => FixedProduct::default(),
                _ => FixedProduct::with(Instructions::fastest()),
            };
            let product = cpu::Threads::new(product, threads)?;
            Ok(Box::new(StageEngine::with_product(model, settings, weights, product)?))
        }
        (Device::Cpu { threads }, Arithmetic::Bf16x3) => {
            let product = cpu::Threads::new(Bf16x3Product::default(), threads)?;
            Ok(Box::new(StageEngine::with_product(model, settings, weights, product)?))
        }
        (Device::Cpu { threads }, Arithmetic::Bf16) => {
            let product = cpu::Threads::new(Bf16Product::default(), threads)?;
            Ok(Box::new(StageEngine::with_product(model, settings, weights, product)?))
        }
        (Device::Cuda(_) | Device::Metal(_), _) if device.computes(arithmetic) => {
            let precision = match arithmetic {
                Arithmetic::Bf16 => candle::Precision::Bf16,
                _ => candle::Precision::F32,
            };
            Ok(Box::new(candle::Candle::new(model, settings, weights, precision, &candle::device(device)?)?))
        }
        (device, arithmetic) => {
            Err(EngineError::Device(format!("{device} does not compute in {arithmetic:?} arithmetic in this build")))
        }
    }
}

/// What multiplies on this processor, in a word.
pub fn instructions(arithmetic: Arithmetic) -> String {
    let bf16 = Bf16Instructions::fastest();
    let name = match arithmetic {
        Arithmetic::Bf16 => format!("{bf16:?}"),
        Arithmetic::Bf16x3 if bf16 == Bf16Instructions::Amx => format!("{bf16:?}"),
        Arithmetic::Repeatable => format!("{:?}", Instructions::fixed()),
        Arithmetic::F32 | Arithmetic::Bf16x3 => format!("{:?}", Instructions::fastest()),
    };
    name.to_lowercase()
}

/// Engines for a worker on one device, in the first arithmetic of the manifest that the device has.
#[derive(Clone, Debug)]
pub struct OnDevice {
    device: Device,
    /// Where the first weights of a run lie that are not drawn from a seed.
    base: Option<Arc<Checkpoint>>,
}

impl OnDevice {
    pub fn new(device: Device) -> Self {
        OnDevice { device, base: None }
    }

    pub fn with_base(self, base: Option<Arc<Checkpoint>>) -> Self {
        OnDevice { base, ..self }
    }
}

impl Engines for OnDevice {
    fn initial(&mut self, manifest: &Manifest, model: &StageModel) -> Result<Vec<f32>, EngineError> {
        match (init::of_manifest(manifest, model), &self.base) {
            (Some(drawn), _) => Ok(drawn),
            (None, Some(base)) => base.read(model).map_err(|error| EngineError::Device(error.to_string())),
            (None, None) => Err(EngineError::Device("the first weights of this run are on another machine".into())),
        }
    }

    fn make(
        &mut self,
        manifest: &Manifest,
        model: StageModel,
        weights: StageWeights,
    ) -> Result<Box<dyn Engine>, EngineError> {
        let wanted = &manifest.train.arithmetic;
        let here = |arithmetic: &&Arithmetic| self.device.computes(**arithmetic);
        // What is slow on this processor is computed only where nothing else is allowed.
        let slow = |arithmetic: &Arithmetic| match (self.device, arithmetic) {
            // Without fused multiply-adds the fixed order is a call for each.
            (Device::Cpu { .. }, Arithmetic::Repeatable) => Instructions::fastest() != Instructions::fixed(),
            // Without instructions for bf16 it is f32, and rounding besides.
            (Device::Cpu { .. }, Arithmetic::Bf16) => Bf16Instructions::fastest() == Bf16Instructions::Portable,
            _ => false,
        };
        let quick = |arithmetic: &&Arithmetic| here(arithmetic) && !slow(arithmetic);
        let Some(arithmetic) = wanted.iter().find(quick).or_else(|| wanted.iter().find(here)) else {
            return Err(EngineError::Device(format!("{} computes in none of {wanted:?}", self.device)));
        };
        engine(self.device, *arithmetic, model, Settings::of(manifest), weights)
    }
}
