//! A replica is suspended for longer than the others wait, and goes on: it must not count anything a second time.

use crate::process::{Skein, alone, books, invite, text};

#[test]
fn a_replica_that_was_suspended_starts_over_and_counts_nothing_twice() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let (data, home, friends) = (dir.path().join("data.txt"), dir.path().join("owner"), dir.path().join("friend"));
    text(&data);
    let data = data.display().to_string();
    let mut owner = Skein::start(&home, &["train", "--preset", "demo", "--run-name", "tale", "--data", &data]);
    let mut friend = Skein::start(&friends, &["join", &invite(&mut owner)]);
    let me = friend.wait_for("Started")["peer"].clone();
    friend.wait_for("Serving");
    for _ in 0..3 {
        friend.wait_for("Stepped");
        friend.wait_for("Added");
        friend.signal(libc::SIGSTOP);
        // Its ids are sent to others meanwhile.
        owner.wait_until(|line| line["type"] == "PeerLost" && line["peer"] == me).expect("its silence is noticed");
        owner.forget();
        owner.wait_for("Completed");
        friend.signal(libc::SIGCONT);
        // Until they have met again there is nobody whose silence could be noticed.
        owner.wait_until(|line| line["type"] == "PeerUp" && line["peer"] == me).expect("it comes back");
        friend.wait_for("Fenced");
        friend.wait_for("Started");
    }
    friend.wait_for("Stepped");
    friend.leave();
    owner.leave();

    let books = books(&[&home, &friends], &[]);
    assert_eq!((books.lost, books.doubled), (0, 0), "{books:?}");
    assert!(books.completed > 0 && books.broken.is_empty(), "{books:?}");
}
