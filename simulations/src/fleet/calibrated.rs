//! Numbers that the fleet takes from protocol fidelity, each with how it was measured or that it is assumed. The test `fleet` in
//! `tests/it` holds both fidelities against each other.

use super::law::Waits;

/// Rounds that a replica takes part in while it makes the own steps between two rounds: 2 ln 2. A partner is drawn among all and
/// its count begins anew too, so with a hazard h of being drawn a stretch ends at H steps or before: (1 - exp(-h H)) / h is the
/// mean stretch, and half of all takings-part are being drawn, whence exp(-h H) = 1/2.
pub const ROUNDS_A_PERIOD: f64 = 2.0 * std::f64::consts::LN_2;

/// Own steps since the last round, as a part of those between two rounds, at a random moment of the process above: the second
/// moment of a stretch over twice its mean, (1 - ln 2) / (ln 2)^2 / (1 / ln 2).
pub const AGE_OF_A_ROUND: f64 = (1.0 - std::f64::consts::LN_2) / std::f64::consts::LN_2;

/// How micro-batches wait, in the law of queues: see `law`. Measured with four stages, one feeder, devices that are all alike and
/// take 4 s for a micro-batch.
///
/// `queue`: with ten replicas a stage protocol fidelity does 2.23 a second of 2.5, with fifty 10.94 of 12.5, and the law with this
/// number 2.18 and 10.88. Work sent at random would give 0.5: routes see what they gave a replica, and how late it answers. In
/// both there are two ways for a micro-batch: so many are `seen`.
///
/// `blind`: in the mean of seeds 4 to 6 of the test, 200 peers that serve all four stages do 9.15 a second, with two each 10.53,
/// half of them with one and half with all four 7.86; in these there are 7, 3 and 4 ways for a micro-batch, and the law gives 8.75,
/// 10.5 and 8.3. From seed to seed they differ by a tenth. `popular`: of replicas that eight know in the mean the most popular one
/// of many is known to twice as many (Poisson's law).
///
/// `oldest`: where all serve four, two, and one or four, the oldest waits for 2.1, 1.7 and 1.7 times the mean.
pub const WAITS: Waits = Waits { queue: 0.35, oldest: 2.0, blind: 0.18, seen: 2.2, popular: 2.0 };

/// Seconds until what a dead replica had is at work elsewhere: connections are idle for 1.6 s before they count as lost. With a
/// fifth of 40 peers dying over 160 s throughput lies 4% below protocol fidelity, with a fifth of 200 it lies 5% above.
pub const REPAIR_S: f64 = 2.0;

/// Part of what a dead replica had in flight that is computed again. Assumed: a death falls anywhere in the time that it holds a
/// micro-batch.
pub const REDONE: f64 = 0.5;

/// Seconds from coming to fetching: a hello and 0.7 s of settling by the product's constant, the rest for dialling. Assumed.
pub const SETTLES_S: f64 = 1.5;

/// Part of the donor's uplink that a fetch gets at least beside training. Assumed.
pub const FETCH_SHARE: f64 = 0.1;

/// Bytes of frames without a body, for each micro-batch and stage. Assumed: some ten frames of 120 bytes; gossip is not in it.
pub const CONTROL_BYTES: f64 = 1200.0;

/// Relative spread of the time that a micro-batch is under way. With it the median and the 99th percentile of staleness are those
/// of protocol fidelity in the test, 0 and 2 own steps.
pub const SPREAD: f64 = 0.5;

/// How much rather than to one of the others a micro-batch goes on at the same peer: it answers earliest there, and has the least
/// under way. 200 peers that serve all four stages behind slow links do 44.8 a second in the mean of seeds 4 to 6, and with this
/// number 43.2; were no hop local, it would be a tenth less in both.
pub const NEARER: f64 = 2.0;

/// Who came so shortly before is not known when the stages are chosen: a peer says where it will serve when it has settled, and
/// all who come at one moment settle at one moment. Of 200 real peers that start at once all take all three stages; of 50, which
/// settle within a tenth of a second and hear of each other within hundredths, about half take fewer. Assumed: a period of the plan.
pub const UNSEEN_S: f64 = 0.5;
