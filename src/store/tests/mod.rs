//! One suite for every store, and what only one of them has to show.
//!
//! The Postgres tests want the URL of a maintenance database in `ORGSTREAM_TEST_POSTGRES`
//! (`scripts/postgres run cargo test` sees to it); each creates a database of its own and drops it. Where
//! `ORGSTREAM_TEST_PGBOUNCER` names a pooler before the same server, the suite runs through it too.

mod bed;
mod commands;
mod credentials;
mod held_up;
mod holes;
mod leases;
mod letter_moves;
mod letters;
mod observations;
mod postgres;
mod retention;
mod sealed_letters;
#[cfg(feature = "sqlite")]
mod sqlite;
mod subscriptions;
mod tables;
mod transactions;

/// Makes a test of each function for every store.
macro_rules! suite {
    ($($module:ident :: $name:ident,)*) => {
        #[cfg(feature = "sqlite")]
        mod on_sqlite {
            $(#[tokio::test] async fn $name() {
                super::$module::$name(&super::bed::Bed::sqlite()).await;
            })*
        }
        mod on_postgres {
            $(#[tokio::test] async fn $name() {
                if let Some(bed) = super::bed::Bed::postgres().await {
                    super::$module::$name(&bed).await;
                    bed.end().await;
                }
            })*
        }
        mod behind_pgbouncer {
            $(#[tokio::test] async fn $name() {
                if let Some(bed) = super::bed::Bed::pgbouncer().await {
                    super::$module::$name(&bed).await;
                    bed.end().await;
                }
            })*
        }
    };
}

suite! {
    tables::migrating_from_four_places_at_once_applies_each_migration_once,
    tables::a_store_without_tables_says_what_to_run,
    tables::a_closed_store_refuses_calls_and_gives_no_panic,
    tables::a_store_belongs_to_the_first_org_it_sees,
    tables::schemas_are_kept,
    subscriptions::a_new_subscription_begins_without_a_position,
    subscriptions::a_restart_before_the_first_position_is_told,
    subscriptions::progress_survives_reopening_and_reaches_the_next_holder,
    subscriptions::each_write_replaces_what_was_finished_ahead,
    subscriptions::a_large_set_finished_ahead_is_written_and_emptied,
    subscriptions::a_holder_whose_epoch_has_passed_is_refused_everywhere,
    subscriptions::a_write_that_comes_late_never_overtakes_a_newer_one,
    subscriptions::a_name_whose_topic_changed_is_refused,
    subscriptions::a_rename_is_suspected_and_an_explicit_start_overrules_it,
    subscriptions::taking_over_refuses_another_org,
    subscriptions::workers_that_take_over_at_once_get_different_epochs,
    subscriptions::states_counters_and_open_work_are_shown,
    subscriptions::positions_are_marked_at_most_once_a_minute,
    subscriptions::a_position_that_is_given_up_is_none_and_says_where_to_begin,
    subscriptions::how_many_events_came_lately_is_told_by_the_marks,
    leases::a_lease_keeps_others_out_until_it_runs_out_or_is_given_back,
    leases::a_heartbeat_renews_what_is_still_the_holders_even_after_it_ran_out,
    leases::workers_are_counted_while_they_live_and_do_not_stop,
    leases::a_worker_that_is_dead_for_a_day_is_forgotten,
    leases::what_a_person_paused_is_taken_by_nobody_until_it_is_resumed,
    leases::a_rename_takes_everything_along_and_fences_the_old_owner,
    leases::a_rename_ends_its_own_pause_and_no_persons,
    leases::a_rename_is_refused_while_a_worker_runs_it_or_the_name_is_taken,
    leases::a_name_that_was_given_up_is_not_begun_anew_until_it_is_given_back,
    leases::a_worker_tells_the_others_what_it_can_run_and_people_what_it_was_refused,
    leases::a_survey_tells_what_has_a_position_and_what_began_without_one,
    leases::the_owner_is_shown_by_its_name_while_it_holds_the_lease,
    letters::a_parked_event_is_kept_as_received,
    letters::parking_the_same_event_again_changes_nothing,
    letters::a_resolved_event_that_fails_anew_is_open_again,
    letters::the_events_of_a_unit_are_parked_together,
    letters::filters_and_limits_choose_the_oldest_first,
    letters::parked_events_are_listed_in_pages_from_either_end_and_without_payloads,
    letters::text_that_no_database_likes_is_kept_readable,
    sealed_letters::a_sealed_payload_rests_encrypted_and_is_read_again,
    sealed_letters::without_the_key_it_was_sealed_under_a_payload_is_not_read_and_the_letter_stays,
    sealed_letters::a_payload_in_another_row_does_not_open_and_a_renamed_subscription_keeps_its_own,
    sealed_letters::what_is_parked_again_is_sealed_as_it_is_to_be_now,
    letter_moves::letters_parked_together_keep_their_order_and_one_open_again_is_the_newest,
    letter_moves::an_open_letter_is_summed_up_without_its_payload,
    letter_moves::a_letter_above_the_position_is_still_to_come_again,
    letter_moves::after_a_rewind_open_letters_are_to_come_again_at_the_latest_at_the_old_position,
    letter_moves::letters_go_behind_those_that_are_parked_before_them,
    letter_moves::what_is_settled_before_the_position_follows_is_known_to_the_next_holder,
    letter_moves::a_letter_that_is_refused_once_more_says_why_and_asks_for_nothing,
    letter_moves::a_letter_that_can_be_decoded_now_gives_every_handler_one_in_its_place,
    letter_moves::a_unit_is_passed_on_and_given_up_whole,
    letter_moves::people_ask_withdraw_and_discard_and_the_owner_hears_of_it,
    letter_moves::a_holder_whose_epoch_has_passed_moves_no_letter,
    holes::a_lost_hole_is_recorded_once_until_its_end_is_known,
    holes::a_position_that_is_lost_again_is_the_same_hole_whose_end_moves,
    holes::a_start_at_latest_that_dies_again_adds_to_the_hole_it_began_in,
    holes::a_gap_is_recorded_once_for_each_event_and_never_closed,
    holes::a_gap_of_very_many_records_keeps_the_first_and_the_count,
    holes::gaps_are_recorded_together_each_once,
    commands::a_command_is_asked_begun_saved_and_ended,
    commands::a_withdrawn_command_is_stopped_and_one_that_is_over_stays_as_it_is,
    commands::commands_are_carried_out_by_the_holder_only,
    commands::a_command_of_a_later_release_is_left_alone,
    commands::a_rewind_raises_the_epoch_and_sets_the_position,
    commands::a_rewind_to_a_marked_position_knows_how_old_it_is,
    commands::a_rewind_to_earliest_or_latest_is_found_again_until_there_is_a_position,
    commands::a_rewind_to_latest_records_what_it_skips,
    commands::a_rewind_leaves_a_hole_until_the_stream_shows_that_it_went_back,
    commands::a_rewind_to_where_it_stands_or_back_again_skips_nothing,
    commands::a_rewind_before_the_first_position_leaves_a_hole_too,
    commands::a_rewind_forward_and_one_more_are_two_holes,
    commands::a_withdrawn_rewind_changes_nothing,
    commands::a_time_is_found_among_the_marks,
    holes::holes_are_acknowledged_by_number_by_subscription_or_all,
    retention::only_what_is_done_with_for_long_is_deleted,
    retention::what_is_deleted_goes_in_portions,
    retention::what_was_observed_long_ago_is_deleted,
    retention::the_newest_changes_of_state_stay_and_never_too_many,
    observations::a_worker_shows_its_last_snapshot_while_it_lives,
    observations::a_living_worker_tells_since_when_it_runs_and_when_it_was_seen,
    observations::samples_of_one_minute_are_one_with_the_worst_lag_and_all_events,
    observations::whoever_lost_the_lease_posts_no_sample_and_a_rename_takes_them_along,
    observations::a_state_is_kept_where_it_or_its_detail_or_the_owner_changes,
    observations::a_state_change_names_the_call_the_place_and_the_worker,
    observations::states_that_came_since_are_reported_together_and_the_last_one_stands,
    observations::one_of_all_workers_is_told_to_ask_for_the_limits,
    observations::readings_of_the_allocation_are_read_oldest_first,
    credentials::only_one_holder_refreshes_until_its_time_is_up,
    credentials::a_rotated_token_is_found_again_and_rests_encrypted,
    credentials::a_token_that_cannot_be_read_or_kept_names_the_variable,
}

/// Makes a test of each function for Postgres, as it is and behind a pooler.
macro_rules! postgres_suite {
    ($($name:ident,)*) => {
        mod transactions_on_postgres {
            $(#[tokio::test] async fn $name() {
                if let Some(bed) = super::bed::Bed::postgres().await {
                    super::transactions::$name(&bed).await;
                    bed.end().await;
                }
            })*
        }
        mod transactions_behind_pgbouncer {
            $(#[tokio::test] async fn $name() {
                if let Some(bed) = super::bed::Bed::pgbouncer().await {
                    super::transactions::$name(&bed).await;
                    bed.end().await;
                }
            })*
        }
    };
}

postgres_suite! {
    rows_and_marks_are_committed_together_or_not_at_all,
    an_event_that_an_earlier_transaction_finished_is_not_done_again,
    what_the_work_did_not_finish_keeps_no_mark,
    a_failed_statement_that_the_work_passes_over_is_not_committed,
    a_transaction_that_the_work_begins_is_a_savepoint,
    a_constraint_that_fails_at_the_commit_is_an_error_of_the_work,
    a_commit_waits_for_the_disk_whatever_the_database_is_set_to,
    a_worker_whose_epoch_has_passed_commits_no_rows,
    what_begins_while_another_takes_over_waits_and_is_refused,
    whoever_takes_over_waits_for_an_open_transaction_and_sees_its_marks,
    a_commit_whose_answer_was_lost_is_waited_for_and_then_seen,
    a_connection_that_is_lost_half_way_leaves_nothing_and_the_next_call_goes_well,
    a_transaction_that_takes_too_long_is_given_up,
    a_commit_whose_answer_does_not_come_is_no_failure_of_the_work,
    a_dead_letter_is_resolved_with_the_rows,
    a_position_waits_for_no_letter_that_is_with_a_handler,
    a_letter_is_settled_by_one_transaction_while_others_and_people_wait,
    an_event_of_a_side_replay_is_done_as_often_as_it_is_given,
    a_trial_sees_the_database_and_leaves_nothing,
    work_without_marks_is_committed_where_it_has_done_anything,
    a_position_written_late_takes_no_mark_that_it_has_not_passed,
    positions_are_written_while_all_handlers_are_in_their_transactions,
}
