//! The validation tables: every row that has a bound keeps it.

use skein_simulations::validate::{self, Table};

#[track_caller]
fn assert_holds(table: Table) {
    let broken = table.broken();
    assert!(!table.rows.is_empty() && broken.is_empty(), "{}: {broken:#?}", table.title);
}

#[test]
fn transfers_the_bubble_groups_and_late_gradients_follow_their_formulas() {
    [validate::flows, validate::network, validate::bubble, validate::groups, validate::delayed]
        .into_iter()
        .for_each(|make| assert_holds(make()));
}

#[test]
fn without_overlap_our_peers_are_swarms_latency_table() {
    assert_holds(validate::latency());
}

#[test]
fn with_overlap_our_peers_beat_every_cell_of_it() {
    assert_holds(validate::overlap());
}

#[test]
fn a_wider_model_is_kept_busier_by_the_same_link() {
    assert_holds(validate::square_cube());
}

#[test]
fn layouts_of_64_gpus_cost_what_dt_fm_says_and_ours_is_no_dearer() {
    assert_holds(validate::worldwide());
}

#[test]
fn spot_instances_live_and_train_as_in_bamboos_simulator() {
    assert_holds(validate::bamboo());
}

#[test]
fn the_plan_keeps_stages_balanced_the_better_the_more_often_it_may_move() {
    assert_holds(validate::rebalance());
}

#[test]
fn worlds_that_differ_in_one_thing_differ_as_they_must() {
    assert_holds(validate::metamorphic());
}

#[test]
fn the_page_has_all_tables_and_no_row_that_does_not_hold() {
    // The quick ones; the command makes the page of all.
    let tables = [validate::flows(), validate::helix(), validate::loopback(&[], 0.8)];
    let page = validate::markdown(&tables, "a machine", "a day");
    assert!(tables.iter().all(|table| page.contains(&table.title)) && !page.contains("**no**"), "{page}");
}
