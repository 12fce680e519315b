//! An engine whose device may run out of memory. In: forwards and backwards of whole micro-batches. Out: their results, however
//! small the pieces in which they were computed.
//!
//! What fails on the device is asked once more with nothing kept but inputs; then the micro-batch is cut into pieces of whole
//! sequences, which are computed one after the other and give the same up to rounding, since tokens of different sequences
//! meet in no product but the sum of gradients. A device that has fitted for a while is trusted with more again: what filled it may
//! have been another program.

use std::{
    collections::BTreeMap,
    ops::{Deref, DerefMut, Range},
};

use skein_protocol::wire::Starts;

use crate::{
    exact::{Engine, EngineError, IGNORE, Lost, StageInput, StepReport},
    job::Key,
};

/// Keys of pieces have this bit; the peer counts its own from 0.
const PIECE: Key = 1 << 63;

/// A device is trusted with twice as much after so many micro-batches that fitted; each time that it fails, after twice as many.
const PATIENCE: u32 = 64;
const PATIENCE_MAX: u32 = 4096;

pub struct Fitted {
    engine: Box<dyn Engine>,
    /// Bytes that kept forwards may take beyond their inputs.
    kept_bytes_max: u64,
    /// What the device may be asked to keep, as long as it has not failed.
    allowed: u64,
    /// What a device that ran out of memory is still trusted with.
    ceiling: u64,
    /// Micro-batches that fitted since it failed or was trusted with more, and how many it takes to be trusted with more.
    calm: u32,
    patience: u32,
    /// Into how many pieces a micro-batch is cut: a power of two.
    pieces: usize,
    trial: Trial,
    /// The sum is not the one that its micro-batches made.
    spoiled: bool,
    /// Keys of the pieces of micro-batches that were cut.
    cut: BTreeMap<Key, Vec<Key>>,
    next: Key,
}

/// One micro-batch alone is cut less than the others. Whether the device has room for such shows at its backward, before which many
/// others would be on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trial {
    None,
    Due,
    Of(Key),
}

impl Deref for Fitted {
    type Target = dyn Engine;

    fn deref(&self) -> &Self::Target {
        self.engine.as_ref()
    }
}

impl DerefMut for Fitted {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.engine.as_mut()
    }
}

impl Fitted {
    pub fn new(engine: Box<dyn Engine>) -> Self {
        let kept_bytes_max = engine.settings().kept_bytes_max;
        Fitted {
            engine,
            kept_bytes_max,
            allowed: kept_bytes_max,
            ceiling: u64::MAX,
            calm: 0,
            patience: PATIENCE / 2,
            pieces: 1,
            trial: Trial::None,
            spoiled: false,
            cut: BTreeMap::new(),
            next: PIECE,
        }
    }

    /// Bytes that kept forwards may take beyond their inputs.
    pub fn kept_bytes_max(&self) -> u64 {
        self.kept_bytes_max
    }

    pub fn allow(&mut self, kept_bytes_max: u64) {
        self.allowed = kept_bytes_max;
        self.kept_bytes_max = kept_bytes_max.min(self.ceiling);
        self.engine.set_kept_bytes_max(self.kept_bytes_max);
    }

    /// Micro-batches whose input is kept.
    pub fn kept_whole(&self) -> usize {
        let more: usize = self.cut.values().map(|pieces| pieces.len() - 1).sum();
        self.engine.kept().len() - more
    }

    /// As [`Engine::forward_packed`].
    pub fn forward(&mut self, key: Key, input: StageInput<'_>, starts: &Starts) -> Result<Vec<f32>, EngineError> {
        if self.is_on_trial(key) {
            let made = self.forward_in_pieces(self.pieces / 2, key, input, starts);
            if !is_full(&made) {
                return made;
            }
            self.end_trial(false);
        }
        self.smaller(|fitted| fitted.forward_in_pieces(fitted.pieces, key, input, starts))
    }

    /// [`Engine::forward_packed`] and [`Engine::loss_backward`] at the last stage.
    pub fn loss(
        &mut self,
        key: Key,
        input: StageInput<'_>,
        starts: &Starts,
        targets: &[u32],
        weight: f32,
    ) -> Result<Lost, EngineError> {
        let lost = |fitted: &mut Self, pieces| {
            fitted.forward_in_pieces(pieces, key, input, starts)?;
            fitted.loss_in_pieces(key, targets, weight)
        };
        if self.is_on_trial(key) {
            let made = lost(self, self.pieces / 2);
            self.end_trial(!is_full(&made));
            if !is_full(&made) {
                return made;
            }
        }
        self.smaller(|fitted| lost(fitted, fitted.pieces))
    }

    /// As [`Engine::backward`], at the weights of the forward while they are held. It comes in the pieces of its forward; where
    /// those are too large, the next forwards are cut smaller.
    pub fn backward(&mut self, key: Key, gradient: &[f32], weight: f32) -> Result<Vec<f32>, EngineError> {
        let ask = |fitted: &mut Self| fitted.backward_in_pieces(key, gradient, weight);
        if self.trial == Trial::Of(key) {
            let answer = self.asked(ask);
            self.end_trial(!is_full(&answer));
            return answer;
        }
        // Those that were cut before the device was found too small teach nothing new.
        if self.cut.get(&key).map_or(1, Vec::len) < self.pieces {
            return self.asked(ask);
        }
        let answer = self.keeping_less(ask);
        if is_full(&answer) {
            self.cut_smaller();
        }
        answer
    }

    /// As [`Engine::step`]. Where it fails the sum is of no more use.
    pub fn step(&mut self, lr: f64) -> Result<StepReport, EngineError> {
        if std::mem::take(&mut self.spoiled) {
            self.engine.drop_sum();
            return Err(EngineError::Device("part of a gradient could not be taken out of the sum again".into()));
        }
        self.keeping_less(|fitted| fitted.engine.step(lr))
    }

    /// As [`Engine::drop_sum`].
    pub fn drop_sum(&mut self) {
        self.spoiled = false;
        self.engine.drop_sum();
    }

    fn is_on_trial(&mut self, key: Key) -> bool {
        if self.trial == Trial::Due {
            self.trial = Trial::Of(key);
        }
        self.trial == Trial::Of(key)
    }

    fn end_trial(&mut self, has_room: bool) {
        self.trial = Trial::None;
        match has_room {
            true => (self.calm, self.pieces) = (0, self.pieces / 2),
            false => self.distrust(),
        }
    }

    /// The device failed.
    fn distrust(&mut self) {
        self.calm = 0;
        self.patience = (2 * self.patience).min(PATIENCE_MAX);
    }

    /// One more micro-batch fitted.
    fn trust(&mut self) {
        let trusted = self.pieces == 1 && self.ceiling >= self.allowed;
        let waits = trusted || self.trial != Trial::None;
        self.calm += u32::from(!waits);
        if waits || self.calm < self.patience {
            return;
        }
        self.calm = 0;
        if self.pieces > 1 {
            self.trial = Trial::Due;
        } else {
            self.ceiling = self.ceiling.saturating_mul(2).max(self.allowed / 8);
            self.allow(self.allowed);
        }
    }

    /// As [`Engine::drop_kept`].
    pub fn drop_kept(&mut self, key: Key) {
        if self.trial == Trial::Of(key) {
            self.trial = Trial::None;
        }
        self.forget(key);
    }

    fn forget(&mut self, key: Key) {
        match self.cut.remove(&key) {
            Some(pieces) => pieces.into_iter().for_each(|piece| self.engine.drop_kept(piece)),
            None => self.engine.drop_kept(key),
        }
    }

    /// Asks; where the device fails, asks once more with nothing kept but inputs.
    fn asked<T>(&mut self, mut ask: impl FnMut(&mut Self) -> Result<T, EngineError>) -> Result<T, EngineError> {
        let answer = ask(self);
        if !is_full(&answer) || self.kept_bytes_max == 0 {
            return answer;
        }
        self.engine.set_kept_bytes_max(0);
        let again = ask(self);
        self.engine.set_kept_bytes_max(self.kept_bytes_max);
        again
    }

    /// As [`asked`](Self::asked). Where the device fails, half as much is kept from then on.
    fn keeping_less<T>(&mut self, mut ask: impl FnMut(&mut Self) -> Result<T, EngineError>) -> Result<T, EngineError> {
        let mut failures = 0;
        let answer = self.asked(|fitted| ask(fitted).inspect_err(|error| failures += u32::from(is_device(error))));
        if failures > 0 {
            self.distrust();
            self.ceiling = self.kept_bytes_max / 2;
            self.allow(self.allowed);
        }
        answer
    }

    /// As [`keeping_less`](Self::keeping_less), then in pieces that are half as large each time.
    fn smaller<T>(&mut self, mut ask: impl FnMut(&mut Self) -> Result<T, EngineError>) -> Result<T, EngineError> {
        let mut answer = self.keeping_less(&mut ask);
        if answer.is_ok() {
            self.trust();
        }
        while is_full(&answer) && self.cut_smaller() {
            answer = ask(self);
        }
        answer
    }

    /// Whether smaller pieces are whole sequences still.
    fn cut_smaller(&mut self) -> bool {
        let smaller = 2 * self.pieces <= self.engine.settings().micro_batch;
        self.pieces <<= u32::from(smaller);
        smaller
    }

    fn forward_in_pieces(
        &mut self,
        pieces: usize,
        key: Key,
        input: StageInput<'_>,
        starts: &Starts,
    ) -> Result<Vec<f32>, EngineError> {
        self.forget(key);
        if pieces == 1 {
            return self.engine.forward_packed(key, input, starts);
        }
        let t = self.engine.settings().sequence;
        let a_sequence = t * self.engine.model().config.hidden as usize;
        let sequences = match input {
            StageInput::Tokens(ids) => ids.len() / t,
            StageInput::Hidden(values) => values.len() / a_sequence,
        };
        let mut output = Vec::new();
        for range in ranges(sequences, pieces) {
            let part = match input {
                StageInput::Tokens(ids) => StageInput::Tokens(&ids[range.start * t..range.end * t]),
                StageInput::Hidden(x) => StageInput::Hidden(&x[range.start * a_sequence..range.end * a_sequence]),
            };
            self.next += 1;
            let piece = self.next;
            let starts = starts.part(range.start * t..range.end * t);
            let made = self.engine.forward_packed(piece, part, &starts).inspect_err(|_| self.forget(key))?;
            self.cut.entry(key).or_default().push(piece);
            output.extend_from_slice(&made);
            self.engine.reuse(made);
        }
        Ok(output)
    }

    /// The loss is the mean over all counted tokens: a piece weighs as many of them as it has.
    fn loss_in_pieces(&mut self, key: Key, targets: &[u32], weight: f32) -> Result<Lost, EngineError> {
        let Some(pieces) = self.cut.get(&key).cloned() else {
            return self.engine.loss_backward(key, targets, weight);
        };
        let t = self.engine.settings().sequence;
        let counted = |targets: &[u32]| targets.iter().filter(|target| **target != IGNORE).count();
        let all = counted(targets);
        let mut whole = Lost { loss: 0.0, tokens: 0, gradient: Vec::new() };
        let work = pieces.iter().zip(ranges(targets.len() / t, pieces.len())).map(|(piece, range)| {
            let targets = &targets[range.start * t..range.end * t];
            let share = if all == 0 { 1.0 / pieces.len() as f32 } else { counted(targets) as f32 / all as f32 };
            (*piece, targets, share)
        });
        self.all_or_nothing(work, |engine, (piece, targets, share), sign| {
            let lost = engine.loss_backward(piece, targets, sign * weight * share)?;
            if sign > 0.0 {
                whole.loss += lost.loss;
                whole.tokens += lost.tokens;
                whole.gradient.extend(lost.gradient.iter().map(|value| value * share));
            }
            engine.reuse(lost.gradient);
            Ok(())
        })?;
        Ok(whole)
    }

    /// The sum counts each piece's weight, so each gets its part of it, and a gradient that is larger by as much. Both are exact:
    /// there are as many pieces as a power of two says.
    fn backward_in_pieces(&mut self, key: Key, gradient: &[f32], weight: f32) -> Result<Vec<f32>, EngineError> {
        let Some(pieces) = self.cut.get(&key).cloned() else {
            return self.engine.backward(key, gradient, weight, false);
        };
        let a_sequence = self.engine.settings().sequence * self.engine.model().config.hidden as usize;
        let count = pieces.len() as f32;
        let mut whole = Vec::new();
        let work = pieces.iter().copied().zip(ranges(gradient.len() / a_sequence, pieces.len()));
        self.all_or_nothing(work, |engine, (piece, range), sign| {
            let part = &gradient[range.start * a_sequence..range.end * a_sequence];
            let larger: Vec<f32> = part.iter().map(|value| value * count).collect();
            let made = engine.backward(piece, &larger, sign * weight / count, false)?;
            if sign > 0.0 {
                whole.extend(made.iter().map(|value| value / count));
            }
            engine.reuse(made);
            Ok(())
        })?;
        Ok(whole)
    }

    /// Adds all pieces to the sum. Where one fails, those before it are taken out again, up to rounding, with `sign` -1. Where that
    /// fails, too, the whole sum is lost, which its step will say: part of a gradient must not be in it when the micro-batch is asked
    /// for again.
    fn all_or_nothing<W: Clone>(
        &mut self,
        work: impl Iterator<Item = W>,
        mut add: impl FnMut(&mut dyn Engine, W, f32) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let mut added = Vec::new();
        for piece in work {
            if let Err(error) = add(self.engine.as_mut(), piece.clone(), 1.0) {
                if added.into_iter().try_for_each(|piece| add(self.engine.as_mut(), piece, -1.0)).is_err() {
                    self.engine.drop_sum();
                    self.spoiled = true;
                }
                return Err(error);
            }
            added.push(piece);
        }
        Ok(())
    }
}

fn is_full<T>(answer: &Result<T, EngineError>) -> bool {
    answer.as_ref().is_err_and(is_device)
}

fn is_device(error: &EngineError) -> bool {
    matches!(error, EngineError::Device(_))
}

/// The sequences of each of so many pieces, none of them empty.
fn ranges(sequences: usize, pieces: usize) -> impl Iterator<Item = Range<usize>> {
    let pieces = pieces.min(sequences).max(1);
    (0..pieces).map(move |i| i * sequences / pieces..(i + 1) * sequences / pieces)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use skein_protocol::run::{OptimizerKind, preset};

    use super::*;
    use crate::{
        exact::{Exact, Settings, TrainState},
        model::{StageModel, init},
    };

    const T: usize = 8;
    const SEQUENCES: usize = 4;

    /// What a device has.
    #[derive(Clone, Copy)]
    struct Device {
        /// For so many sequences at a time.
        room: usize,
        /// Of these a backward has no room for so many.
        less_backward: usize,
        /// Half of the room goes where anything may be kept.
        shared: bool,
        /// Steps fail.
        stepless: bool,
        /// Fails at this backward, from 1.
        fails_at: usize,
    }

    const PLENTY: Device = Device { room: SEQUENCES, less_backward: 0, shared: false, stepless: false, fails_at: 0 };

    struct Narrow {
        engine: Exact,
        device: Device,
        keeps: bool,
        backwards: usize,
    }

    impl Narrow {
        fn check(&self, tokens: usize, less: usize) -> Result<(), EngineError> {
            let Device { room, shared, .. } = self.device;
            let room = if self.keeps && shared { room / 2 } else { room };
            if tokens > T * (room - less) { Err(EngineError::Device("out of memory".into())) } else { Ok(()) }
        }

        fn count_backward(&mut self) -> Result<(), EngineError> {
            self.backwards += 1;
            if self.backwards == self.device.fails_at {
                Err(EngineError::Device("out of memory".into()))
            } else {
                Ok(())
            }
        }
    }

    impl Engine for Narrow {
        fn model(&self) -> &StageModel {
            self.engine.model()
        }

        fn settings(&self) -> &Settings {
            self.engine.settings()
        }

        fn set_kept_bytes_max(&mut self, bytes: u64) {
            self.keeps = bytes > 0;
            self.engine.set_kept_bytes_max(bytes);
        }

        fn set_packed(&mut self, packed: bool) {
            self.engine.set_packed(packed);
        }

        fn forward_packed(
            &mut self,
            key: u64,
            input: StageInput<'_>,
            starts: &Starts,
        ) -> Result<Vec<f32>, EngineError> {
            let tokens = match input {
                StageInput::Tokens(ids) => ids.len(),
                StageInput::Hidden(values) => values.len() / self.model().config.hidden as usize,
            };
            self.check(tokens, 0)?;
            self.engine.forward_packed(key, input, starts)
        }

        fn loss_backward(&mut self, key: u64, targets: &[u32], weight: f32) -> Result<Lost, EngineError> {
            self.check(targets.len(), 0)?;
            self.count_backward()?;
            self.engine.loss_backward(key, targets, weight)
        }

        fn backward(&mut self, key: u64, g: &[f32], weight: f32, recompute: bool) -> Result<Vec<f32>, EngineError> {
            self.check(g.len() / self.model().config.hidden as usize, self.device.less_backward)?;
            self.count_backward()?;
            self.engine.backward(key, g, weight, recompute)
        }

        fn drop_kept(&mut self, key: u64) {
            self.engine.drop_kept(key);
        }

        fn kept(&self) -> Vec<u64> {
            self.engine.kept()
        }

        fn drop_sum(&mut self) {
            self.engine.drop_sum();
        }

        fn sum_weight(&self) -> f64 {
            self.engine.sum_weight()
        }

        fn step(&mut self, lr: f64) -> Result<StepReport, EngineError> {
            if self.device.stepless {
                return Err(EngineError::Device("out of memory".into()));
            }
            self.engine.step(lr)
        }

        fn params(&self) -> &[f32] {
            self.engine.params()
        }

        fn shared(&self) -> Arc<Vec<f32>> {
            self.engine.shared()
        }

        fn set_params(&mut self, params: Vec<f32>) -> Result<(), EngineError> {
            self.engine.set_params(params)
        }

        fn state(&self) -> Result<TrainState, EngineError> {
            self.engine.state()
        }

        fn load(&mut self, state: TrainState) -> Result<(), EngineError> {
            self.engine.load(state)
        }

        fn infer(&mut self, session: u64, at: usize, input: StageInput<'_>) -> Result<Vec<f32>, EngineError> {
            self.engine.infer(session, at, input)
        }

        fn drop_session(&mut self, session: u64) {
            self.engine.drop_session(session);
        }
    }

    /// A stage of the demo's model on such a device.
    fn fitted(stage: u16, device: Device) -> Fitted {
        Fitted::new(Box::new(Narrow { engine: exact(stage), device, keeps: false, backwards: 0 }))
    }

    fn exact(stage: u16) -> Exact {
        let mut manifest = preset("demo").unwrap();
        (manifest.train.sequence, manifest.train.micro_batch) = (T as u32, SEQUENCES as u32);
        // A step is as large as the sum, so that weights show it.
        manifest.optimizer.kind = OptimizerKind::Sgd;
        let model = StageModel::of(&manifest, stage).unwrap();
        let params = init::initial(&model, 1);
        Exact::new(model, Settings::of(&manifest), params).unwrap()
    }

    /// Records that begin in the first, the third and the last sequence.
    fn starts() -> Starts {
        Starts::from([3, 5, 2 * T + 1, 4 * T - 1].map(|at| at as u32).to_vec())
    }

    fn values(fitted: &Fitted, scale: f32) -> Vec<f32> {
        let count = SEQUENCES * T * fitted.model().config.hidden as usize;
        (0..count).map(|i| scale * ((i * 37 % 101) as f32 - 50.0) / 50.0).collect()
    }

    fn near(a: &[f32], b: &[f32]) -> bool {
        let most = b.iter().fold(0f32, |most, value| most.max(value.abs()));
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-5 * most)
    }

    fn stepped(fitted: &mut Fitted) -> Vec<f32> {
        fitted.step(1.0).unwrap();
        fitted.params().to_vec()
    }

    #[test]
    fn a_micro_batch_in_pieces_gives_what_the_whole_gives() {
        let (mut whole, ids) = (fitted(0, PLENTY), (0..(SEQUENCES * T) as u32).collect::<Vec<_>>());
        let gradient = values(&whole, 1e-2);
        for room in [3, 2, 1] {
            let mut narrow = fitted(0, Device { room, ..PLENTY });
            for (key, weight) in [(1, 1.0), (2, 0.5)] {
                let [a, b] =
                    [&mut whole, &mut narrow].map(|it| it.forward(key, StageInput::Tokens(&ids), &starts()).unwrap());
                assert!(near(&a, &b), "room for {room}");
                assert_eq!((narrow.kept_whole(), narrow.kept().len() > key as usize), (key as usize, true));
                let [a, b] = [&mut whole, &mut narrow].map(|it| it.backward(key, &gradient, weight).unwrap());
                assert!(a.is_empty() && b.is_empty());
            }
            assert_eq!(narrow.sum_weight(), 1.5);
            for key in [1, 2] {
                whole.drop_kept(key);
                narrow.drop_kept(key);
            }
            assert!(narrow.kept().is_empty());
            let [a, b] = [&mut whole, &mut narrow].map(stepped);
            assert!(near(&b, &a), "room for {room}");
            whole = fitted(0, PLENTY);
        }
    }

    #[test]
    fn so_do_losses_and_the_gradients_of_inputs() {
        let last = preset("demo").unwrap().last_stage();
        let (mut whole, mut narrow) = (fitted(last, PLENTY), fitted(last, Device { room: 1, ..PLENTY }));
        let input = values(&whole, 1.0);
        // Pieces with many, with few and with no tokens that count.
        let target = |i: usize| if (T + 3..3 * T).contains(&i) { IGNORE } else { i as u32 };
        let targets: Vec<u32> = (0..SEQUENCES * T).map(target).collect();
        let input_of = || StageInput::Hidden(&input);
        let [a, b] = [&mut whole, &mut narrow].map(|it| it.loss(1, input_of(), &starts(), &targets, 1.0).unwrap());
        assert_eq!((a.tokens, b.tokens), (19, 19));
        assert!((a.loss - b.loss).abs() < 1e-4 * a.loss && near(&b.gradient, &a.gradient));
        let [a, b] = [&mut whole, &mut narrow].map(stepped);
        assert!(near(&b, &a));
        let (mut whole, mut narrow) = (fitted(1, PLENTY), fitted(1, Device { room: 1, ..PLENTY }));
        let gradient = values(&whole, 1e-2);
        let [a, b] = [&mut whole, &mut narrow].map(|it| {
            it.forward(1, StageInput::Hidden(&input), &starts()).unwrap();
            it.backward(1, &gradient, 1.0).unwrap()
        });
        assert!(near(&b, &a));
    }

    #[test]
    fn less_is_kept_before_anything_is_cut() {
        let mut narrow = fitted(1, Device { shared: true, ..PLENTY });
        narrow.allow(1 << 30);
        let input = values(&narrow, 1.0);
        narrow.forward(1, StageInput::Hidden(&input), &starts()).unwrap();
        assert_eq!((narrow.kept(), narrow.kept_bytes_max()), (vec![1], 1 << 29));
    }

    #[test]
    fn a_device_that_has_room_again_is_trusted_with_more() {
        let mut narrow = fitted(0, Device { room: 2, shared: true, ..PLENTY });
        narrow.allow(1 << 20);
        let (ids, gradient) = ((0..(SEQUENCES * T) as u32).collect::<Vec<_>>(), values(&narrow, 1e-2));
        let train = |narrow: &mut Fitted, times: u32| {
            for key in 0..u64::from(times) {
                narrow.forward(key, StageInput::Tokens(&ids), &starts()).unwrap();
                narrow.backward(key, &gradient, 1.0).unwrap();
                narrow.drop_kept(key);
            }
        };
        train(&mut narrow, 1);
        let (pieces, kept) = (narrow.pieces, narrow.kept_bytes_max());
        assert!(pieces > 1 && kept < 1 << 20, "{pieces} {kept}");
        // It still has no more room: what it is asked meanwhile is asked ever more rarely, and all is computed.
        train(&mut narrow, 2 * PATIENCE);
        assert!(narrow.pieces > 1 && narrow.patience >= 2 * PATIENCE, "{}", narrow.patience);
        narrow.engine = Box::new(Narrow { engine: exact(0), device: PLENTY, keeps: false, backwards: 0 });
        let mut left = 64;
        while left > 0 && (narrow.pieces, narrow.kept_bytes_max()) != (1, 1 << 20) {
            train(&mut narrow, PATIENCE);
            left -= 1;
        }
        assert_eq!((narrow.pieces, narrow.kept_bytes_max()), (1, 1 << 20));
    }

    #[test]
    fn one_micro_batch_alone_tries_whether_there_is_room_for_more() {
        const AHEAD: u64 = 8;
        // Forwards of the whole fit, backwards only of its halves.
        let mut narrow = fitted(0, Device { less_backward: 2, ..PLENTY });
        let (ids, gradient) = ((0..(SEQUENCES * T) as u32).collect::<Vec<_>>(), values(&narrow, 1e-2));
        let mut failed = 0;
        for round in 0..u64::from(6 * PATIENCE) / AHEAD {
            let keys = round * AHEAD..(round + 1) * AHEAD;
            for key in keys.clone() {
                narrow.forward(key, StageInput::Tokens(&ids), &starts()).unwrap();
            }
            for key in keys {
                failed += u32::from(narrow.backward(key, &gradient, 1.0).is_err());
                narrow.drop_kept(key);
            }
        }
        // The first eight were on their way before one came back; of those that were tried later each was alone.
        assert_eq!((narrow.pieces, narrow.patience), (2, 4 * PATIENCE), "{failed} failed");
        assert_eq!(failed, AHEAD as u32 + 2);
    }

    #[test]
    fn a_sum_that_is_not_what_was_added_is_never_stepped_with() {
        let mut narrow = fitted(1, Device { room: 2, fails_at: 2, ..PLENTY });
        narrow.allow(0);
        let (input, gradient) = (values(&narrow, 1.0), values(&narrow, 1e-2));
        narrow.forward(1, StageInput::Hidden(&input), &starts()).unwrap();
        narrow.spoiled = true;
        assert!(matches!(narrow.step(1.0), Err(EngineError::Device(_))));
        assert_eq!((narrow.sum_weight(), narrow.spoiled), (0.0, false));
        assert!(narrow.backward(1, &gradient, 1.0).is_err() && narrow.backward(1, &gradient, 1.0).is_ok());
        narrow.step(1.0).unwrap();
    }

    #[test]
    fn a_step_without_room_is_tried_once_more_with_less_kept() {
        let mut narrow = fitted(1, Device { stepless: true, ..PLENTY });
        narrow.allow(1 << 30);
        assert!(narrow.step(1.0).is_err());
        assert_eq!(narrow.kept_bytes_max(), 1 << 29);
    }

    #[test]
    fn a_piece_that_fails_takes_those_before_it_out_of_the_sum() {
        let mut narrow = fitted(1, Device { room: 2, fails_at: 2, ..PLENTY });
        narrow.allow(0);
        let (input, gradient) = (values(&narrow, 1.0), values(&narrow, 1e-2));
        narrow.forward(1, StageInput::Hidden(&input), &starts()).unwrap();
        assert!(matches!(narrow.backward(1, &gradient, 1.0), Err(EngineError::Device(_))));
        assert_eq!((narrow.sum_weight(), narrow.kept().len()), (0.0, 2), "it can be asked again");
        narrow.backward(1, &gradient, 1.0).unwrap();
        assert_eq!(narrow.sum_weight(), 1.0);
    }

    #[test]
    fn what_does_not_fit_in_any_piece_fails_and_leaves_nothing() {
        let mut narrow = fitted(1, Device { room: 0, ..PLENTY });
        let input = values(&narrow, 1.0);
        assert!(matches!(narrow.forward(1, StageInput::Hidden(&input), &starts()), Err(EngineError::Device(_))));
        assert!(narrow.kept().is_empty());
    }
}
