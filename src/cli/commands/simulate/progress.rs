//! How far a simulation is: simulated time, how many times faster than the world it is, and when it will be done. Ctrl-C ends it
//! politely: what there is is kept.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use skein_simulations::{
    ask::{Far, Watch},
    report,
};

use crate::cli::out::{Mark, Out};

const LINE_EVERY: Duration = Duration::from_secs(10);
/// Of the bar.
const STEPS: u64 = 1000;

/// One bar for everything that is simulated at one time.
pub struct Progress {
    out: Out,
    bar: Option<ProgressBar>,
    began: Instant,
    /// Simulated milliseconds of each simulation, and of all together when they are done.
    so_far: Vec<AtomicU64>,
    of: Mutex<Vec<Duration>>,
    last_line: Mutex<Instant>,
    stopped: Arc<AtomicBool>,
}

impl Progress {
    pub fn start(out: &Out, label: &str, simulations: usize, stopped: Arc<AtomicBool>) -> Progress {
        let bar = out.style().progress.then(|| {
            let bar = out.bars().add(ProgressBar::new(STEPS));
            let template = "{spinner} {prefix}  {wide_bar}  {percent:>3} %  {msg}";
            bar.set_style(ProgressStyle::with_template(template).expect("the template is fixed"));
            bar.set_prefix(label.to_string());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Progress {
            out: out.clone(),
            bar,
            began: Instant::now(),
            so_far: (0..simulations).map(|_| AtomicU64::new(0)).collect(),
            of: Mutex::new(vec![Duration::ZERO; simulations]),
            last_line: Mutex::new(Instant::now()),
            stopped,
        }
    }

    fn far(&self, number: usize, far: &Far) -> bool {
        self.so_far[number].store(far.simulated.as_millis() as u64, Relaxed);
        self.of.lock().unwrap_or_else(PoisonError::into_inner)[number] = far.of;
        let simulated = Duration::from_millis(self.so_far.iter().map(|ms| ms.load(Relaxed)).sum());
        let begun: Vec<Duration> = self.of.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // What has not begun is taken to be as long as this one.
        let all: Duration = begun.into_iter().map(|of| if of.is_zero() { far.of } else { of }).sum();
        let done = (simulated.as_secs_f64() / all.as_secs_f64().max(1e-9)).min(1.0);
        let took = self.began.elapsed();
        let faster = simulated.as_secs_f64() / took.as_secs_f64().max(1e-3);
        let left = Duration::from_secs_f64(took.as_secs_f64() * (1.0 - done) / done.max(1e-3));
        let message = format!("{} simulated, {} times real time, {} left", span(simulated), times(faster), span(left));
        match &self.bar {
            Some(bar) => {
                bar.set_position((done * STEPS as f64) as u64);
                bar.set_message(message);
            }
            None => {
                let mut last = self.last_line.lock().unwrap_or_else(PoisonError::into_inner);
                if last.elapsed() >= LINE_EVERY {
                    *last = Instant::now();
                    self.out.say(Mark::Note, &format!("{:.0} %: {message}", 100.0 * done), &[]);
                }
            }
        }
        !self.stopped.load(Relaxed)
    }

    /// Looks on at one of the simulations.
    pub fn watch(&self, number: usize) -> impl Watch {
        Watched { progress: self, number }
    }

    /// Whether somebody pressed Ctrl-C.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Relaxed)
    }

    pub fn took(&self) -> Duration {
        self.began.elapsed()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
            self.out.bars().remove(bar);
        }
    }
}

/// Whole seconds, since it goes on while it is read.
fn span(of: Duration) -> String {
    report::span(of.as_secs_f64().round())
}

fn times(faster: f64) -> String {
    if faster < 9.95 { format!("{faster:.1}") } else { format!("{faster:.0}") }
}

struct Watched<'p> {
    progress: &'p Progress,
    number: usize,
}

impl Watch for Watched<'_> {
    fn far(&mut self, far: &Far) -> bool {
        self.progress.far(self.number, far)
    }
}

/// Becomes true at the first Ctrl-C; the second ends the process at once.
pub fn stopped_by_signal() -> Arc<AtomicBool> {
    let stopped = Arc::new(AtomicBool::new(false));
    let flag = stopped.clone();
    std::thread::spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async move {
            while tokio::signal::ctrl_c().await.is_ok() {
                if flag.swap(true, Relaxed) {
                    std::process::exit(130);
                }
            }
        });
    });
    stopped
}
