//! Lays a run out over peers that are unlike far apart: which peers share a stage, and in which order stages follow each other.
//! In: delay and bandwidth of every pair, and what travels in a step. Out: groups of peers, the first stage's first.
//!
//! The price of a layout is that of DT-FM (Yuan et al., "Decentralized Training of Foundation Models in Heterogeneous
//! Environments", 2022, section 3): the slowest group's averaging, and twice (there and back) the way of one micro-batch
//! through all stages. A member averages with each of its group in turn, two messages of its share of the gradient; between two
//! stages peers are paired such that the slowest pair is as fast as can be; of all orders of the stages the cheapest counts.
//!
//! The search swaps peers of different groups, from several regular layouts, and keeps the cheapest layout that it met. What it
//! draws comes from the caller's stream: one seed, one layout.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// What every pair of peers has of a link. Symmetric where the world is.
#[derive(Clone, Debug, PartialEq)]
pub struct Links {
    /// Seconds one way, and bytes a second; of row to column.
    pub delay_s: Vec<Vec<f64>>,
    pub bytes_per_s: Vec<Vec<f64>>,
}

/// What travels in one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Traffic {
    /// Bytes of gradients that each peer averages within its group.
    pub gradient: f64,
    /// Bytes of activations that each peer sends to the next stage.
    pub activation: f64,
}

/// Peers of each stage, the first stage's first. Every group has the same number of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub groups: Vec<Vec<usize>>,
}

/// Seconds that a step spends on links.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Price {
    /// Of the group that takes longest to average.
    pub averaging: f64,
    /// One way through all stages.
    pub path: f64,
}

impl Price {
    pub fn total(&self) -> f64 {
        self.averaging + 2.0 * self.path
    }
}

/// More stages than this are not put in order exactly: the table of the search has 2^n rows.
pub const STAGES_MAX: usize = 16;

/// Swaps that are tried from each beginning.
const SWAPS: u32 = 1500;
/// A swap may make a layout dearer by this part of the first price, at first.
const DEARER: f64 = 0.03;
/// Weight of the mean of all groups beside the worst.
const REST: f64 = 0.02;

/// The cheapest layout found for `stages` groups. Nothing if the peers do not fill them evenly or there are too many stages.
pub fn best(links: &Links, traffic: Traffic, stages: usize, rng: &mut ChaCha8Rng) -> Option<Layout> {
    let peers = links.delay_s.len();
    if stages == 0 || stages > STAGES_MAX || peers == 0 || !peers.is_multiple_of(stages) {
        return None;
    }
    let of_group = peers / stages;
    let times = Times::of(links, traffic, of_group);
    let near = times.chain();
    let mut best: Option<Search<'_>> = None;
    // From groups that are neighbours (width = a whole group) to groups that take one of every neighbourhood (width 1).
    for width in (1..=of_group).filter(|width| of_group.is_multiple_of(*width)) {
        let blocks: Vec<&[usize]> = near.chunks(width).collect();
        let group = |g: usize| blocks.iter().skip(g).step_by(stages).copied().flatten().copied().collect();
        let mut search = Search::new(&times, (0..stages).map(group).collect());
        search.anneal(rng);
        if best.as_ref().is_none_or(|best| search.total() < best.total()) {
            best = Some(search);
        }
    }
    best.map(Search::into_layout)
}

/// The price of a layout with its stages in the order in which they stand.
pub fn price(links: &Links, traffic: Traffic, layout: &Layout) -> Price {
    let of_group = layout.groups.first().map_or(1, Vec::len);
    Times::of(links, traffic, of_group).price(&layout.groups)
}

/// The same groups with the stages in the order that is cheapest.
pub fn in_best_order(links: &Links, traffic: Traffic, layout: &Layout) -> Layout {
    let of_group = layout.groups.first().map_or(1, Vec::len);
    Search::new(&Times::of(links, traffic, of_group), layout.groups.clone()).into_layout()
}

/// What messages take between every pair, worked out once.
struct Times {
    /// Seconds of one body of activations, and of one member's share of the gradient, from row to column.
    activation: Vec<Vec<f64>>,
    share: Vec<Vec<f64>>,
    /// Peers whose links are equal have one number: to swap them changes nothing.
    class: Vec<usize>,
    /// There and back take the same.
    is_symmetric: bool,
}

impl Times {
    fn of(links: &Links, traffic: Traffic, of_group: usize) -> Self {
        let n = links.delay_s.len();
        let times = |bytes: f64| -> Vec<Vec<f64>> {
            let time = |a: usize, b: usize| links.delay_s[a][b] + bytes / links.bytes_per_s[a][b];
            (0..n).map(|a| (0..n).map(|b| time(a, b)).collect()).collect()
        };
        let (activation, share) = (times(traffic.activation), times(traffic.gradient / of_group as f64));
        let same = |times: &[Vec<f64>], a: usize, b: usize| {
            (0..n).filter(|c| *c != a && *c != b).all(|c| times[a][c] == times[b][c] && times[c][a] == times[c][b])
        };
        let alike = |a: usize, b: usize| same(&activation, a, b) && same(&share, a, b);
        let class = (0..n).map(|a| (0..a).find(|b| alike(a, *b)).unwrap_or(a)).collect();
        let is_symmetric = (0..n).all(|a| (0..a).all(|b| activation[a][b] == activation[b][a]));
        Times { activation, share, class, is_symmetric }
    }

    /// Each member sends its share to each other one and gets the mean back: the slowest member's time.
    fn averaging(&self, group: &[usize]) -> f64 {
        let of = |a: &usize| group.iter().filter(|b| *b != a).map(|b| 2.0 * self.share[*a][*b]).sum::<f64>();
        group.iter().map(of).fold(0.0, f64::max)
    }

    /// The slowest pair of the best pairing of two groups.
    fn hop(&self, from: &[usize], to: &[usize]) -> f64 {
        let time = |a: usize, b: usize| self.activation[from[a]][to[b]];
        let mut times: Vec<f64> = (0..from.len()).flat_map(|a| (0..to.len()).map(move |b| time(a, b))).collect();
        times.sort_unstable_by(f64::total_cmp);
        times.dedup();
        // The least time within which everybody finds a partner.
        let enough = times.partition_point(|limit| !pairs_up(from.len(), |a, b| time(a, b) <= *limit));
        times.get(enough).copied().unwrap_or(0.0)
    }

    fn price(&self, groups: &[Vec<usize>]) -> Price {
        let averaging = groups.iter().map(|group| self.averaging(group)).fold(0.0, f64::max);
        Price { averaging, path: groups.windows(2).map(|two| self.hop(&two[0], &two[1])).sum() }
    }

    /// All peers in a row in which each is followed by its nearest of those left.
    fn chain(&self) -> Vec<usize> {
        let mut left: Vec<usize> = (1..self.activation.len()).collect();
        let mut row = vec![0];
        while !left.is_empty() {
            let far = &self.activation[row[row.len() - 1]];
            let at = (0..left.len()).min_by(|a, b| far[left[*a]].total_cmp(&far[left[*b]])).unwrap_or(0);
            row.push(left.remove(at));
        }
        row
    }
}

/// Whether `n` on one side can each have one of `n` on the other (Kuhn's augmenting paths).
fn pairs_up(n: usize, may: impl Fn(usize, usize) -> bool) -> bool {
    fn find(
        a: usize,
        n: usize,
        may: &dyn Fn(usize, usize) -> bool,
        seen: &mut [bool],
        of: &mut [Option<usize>],
    ) -> bool {
        for b in 0..n {
            if may(a, b) && !std::mem::replace(&mut seen[b], true) {
                let is_free = of[b].is_none_or(|other| find(other, n, may, seen, of));
                if is_free {
                    of[b] = Some(a);
                    return true;
                }
            }
        }
        false
    }
    let mut of = vec![None; n];
    (0..n).all(|a| find(a, n, &may, &mut vec![false; n], &mut of))
}

/// A layout under way, with the prices of its parts: a swap changes two groups, and the rest stands.
#[derive(Clone)]
struct Search<'a> {
    times: &'a Times,
    groups: Vec<Vec<usize>>,
    averaging: Vec<f64>,
    hops: Vec<Vec<f64>>,
}

impl<'a> Search<'a> {
    fn new(times: &'a Times, groups: Vec<Vec<usize>>) -> Self {
        let n = groups.len();
        let mut search = Search { times, groups, averaging: vec![0.0; n], hops: vec![vec![0.0; n]; n] };
        (0..n).for_each(|group| search.refresh(group));
        search
    }

    /// Prices of a group whose members changed.
    fn refresh(&mut self, of: usize) {
        self.averaging[of] = self.times.averaging(&self.groups[of]);
        for other in (0..self.groups.len()).filter(|other| *other != of) {
            let back = self.times.is_symmetric;
            self.hops[of][other] = self.times.hop(&self.groups[of], &self.groups[other]);
            self.hops[other][of] =
                if back { self.hops[of][other] } else { self.times.hop(&self.groups[other], &self.groups[of]) };
        }
    }

    fn total(&self) -> f64 {
        let averaging = self.averaging.iter().copied().fold(0.0, f64::max);
        Price { averaging, path: order(&self.hops).0 }.total()
    }

    /// The total, and a little of what all groups take: of two layouts of one price the one whose rest is cheaper has more ways
    /// down.
    fn height(&self) -> f64 {
        let n = self.hops.len() as f64;
        let rest = self.averaging.iter().sum::<f64>() / n + self.hops.iter().flatten().sum::<f64>() / n;
        self.total() + REST * rest
    }

    /// Up to `count` peers of group `a` that are like its `i`th change places with as many of `b` that are like its `j`th.
    fn swap(&mut self, (a, i): (usize, usize), (b, j): (usize, usize), count: usize) {
        let class = |peer: &usize| self.times.class[*peer];
        let like = |group: &[usize], of: usize| -> Vec<usize> {
            (0..group.len()).filter(|at| class(&group[*at]) == class(&group[of])).collect()
        };
        let pairs = like(&self.groups[a], i).into_iter().zip(like(&self.groups[b], j)).take(count);
        for (i, j) in pairs {
            (self.groups[a][i], self.groups[b][j]) = (self.groups[b][j], self.groups[a][i]);
        }
        self.refresh(a);
        self.refresh(b);
    }

    /// Swaps two peers of different groups again and again. What makes the layout dearer is taken too, at first up to a part
    /// of its price and in the end not at all (threshold accepting: Dueck and Scheuer, 1990).
    fn anneal(&mut self, rng: &mut ChaCha8Rng) {
        let (n, of_group) = (self.groups.len(), self.groups[0].len());
        if n < 2 {
            return;
        }
        let mut height = self.height();
        let (start, mut best) = (height, (height, self.groups.clone()));
        for swap in 0..SWAPS {
            let left = 1.0 - swap as f64 / SWAPS as f64;
            let a = rng.random_range(0..n);
            let b = (a + rng.random_range(1..n)) % n;
            let (i, j) = (rng.random_range(0..of_group), rng.random_range(0..of_group));
            let count = rng.random_range(1..=of_group);
            if self.times.class[self.groups[a][i]] == self.times.class[self.groups[b][j]] {
                continue;
            }
            let before = self.clone();
            self.swap((a, i), (b, j), count);
            let now = self.height();
            if now > height + DEARER * left * left * start {
                *self = before;
                continue;
            }
            height = now;
            if height < best.0 {
                best = (height, self.groups.clone());
            }
        }
        *self = Search::new(self.times, best.1);
    }

    /// The layout with its stages in the best order.
    fn into_layout(self) -> Layout {
        let (_, order) = order(&self.hops);
        Layout { groups: order.into_iter().map(|group| self.groups[group].clone()).collect() }
    }
}

/// The cheapest path that visits every group once (Held and Karp, 1962), and what it costs.
fn order(hops: &[Vec<f64>]) -> (f64, Vec<usize>) {
    let n = hops.len();
    // cost[set][last]: cheapest path through `set` that ends at `last`; before[set][last]: who comes before it.
    let mut cost = vec![f64::INFINITY; (1 << n) * n];
    let mut before = vec![usize::MAX; (1 << n) * n];
    (0..n).for_each(|first| cost[(1 << first) * n + first] = 0.0);
    for set in 1usize..1 << n {
        for last in (0..n).filter(|last| set & (1 << last) != 0) {
            let so_far = cost[set * n + last];
            for next in (0..n).filter(|next| set & (1 << next) == 0) {
                let at = (set | (1 << next)) * n + next;
                if so_far + hops[last][next] < cost[at] {
                    cost[at] = so_far + hops[last][next];
                    before[at] = last;
                }
            }
        }
    }
    let all = (1 << n) - 1;
    let mut last = (0..n).min_by(|a, b| cost[all * n + a].total_cmp(&cost[all * n + b])).unwrap_or(0);
    let total = cost[all * n + last];
    let (mut set, mut path) = (all, vec![last]);
    while before[set * n + last] != usize::MAX {
        let earlier = before[set * n + last];
        set ^= 1 << last;
        last = earlier;
        path.push(last);
    }
    path.reverse();
    (total, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn rng() -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(1)
    }

    /// Two towns of `of_each` peers, quick inside and slow between.
    fn two_towns(of_each: usize) -> Links {
        let n = 2 * of_each;
        let pair = |inside: f64, between: f64| {
            (0..n).map(|a| (0..n).map(|b| if a % 2 == b % 2 { inside } else { between }).collect()).collect()
        };
        Links { delay_s: pair(0.001, 0.1), bytes_per_s: pair(1e9, 1e7) }
    }

    #[test]
    fn who_averages_much_stays_in_town_and_only_activations_travel() {
        let links = two_towns(4);
        let layout = best(&links, Traffic { gradient: 1e9, activation: 1e6 }, 2, &mut rng()).expect("it divides");
        assert!(layout.groups.iter().all(|group| group.iter().all(|peer| peer % 2 == group[0] % 2)), "{layout:?}");
    }

    #[test]
    fn who_sends_many_activations_has_every_stage_in_every_town() {
        let links = two_towns(4);
        let layout = best(&links, Traffic { gradient: 1e3, activation: 1e9 }, 2, &mut rng()).expect("it divides");
        let in_first = |group: &Vec<usize>| group.iter().filter(|peer| *peer % 2 == 0).count();
        assert!(layout.groups.iter().all(|group| in_first(group) == 2), "{layout:?}");
    }

    #[test]
    fn stages_follow_each_other_along_the_shortest_path() {
        // Four places on a line, told in a mixed order.
        let place = [2.0f64, 0.0, 3.0, 1.0];
        let far = |a: usize, b: usize| (place[a] - place[b]).abs();
        let links = Links {
            delay_s: (0..4).map(|a| (0..4).map(|b| far(a, b)).collect()).collect(),
            bytes_per_s: vec![vec![1e9; 4]; 4],
        };
        let traffic = Traffic { gradient: 0.0, activation: 0.0 };
        let layout = Layout { groups: (0..4).map(|peer| vec![peer]).collect() };
        let layout = in_best_order(&links, traffic, &layout);
        assert_eq!(price(&links, traffic, &layout).path, 3.0);
        assert!(layout.groups == [[1], [3], [0], [2]] || layout.groups == [[2], [0], [3], [1]], "{layout:?}");
    }

    #[test]
    fn what_cannot_be_laid_out_is_not() {
        let traffic = Traffic { gradient: 1.0, activation: 1.0 };
        assert_eq!(best(&two_towns(3), traffic, 4, &mut rng()), None);
        assert_eq!(best(&two_towns(3), traffic, 0, &mut rng()), None);
        assert_eq!(best(&two_towns(9), traffic, 18, &mut rng()), None);
    }
}
