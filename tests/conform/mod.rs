//! One suite for everything that a journal can be sent to: a directory, a site's server, a bucket, and a
//! bucket whose server answers late, twice, with errors, or not at all. Each check is a test for each of
//! them, over real processes; what is there is judged by `afterimage restore` and `verify`.

mod checks;
mod places;
pub mod source;

use places::{Bucket, Directory, FaultyBucket, Server};

/// Each check over each place.
macro_rules! conform {
    ($($check:ident),* $(,)?) => {
        mod a_directory {
            $(#[test] fn $check() { super::checks::$check(&mut super::Directory::new()); })*
        }
        mod a_server {
            $(#[test] fn $check() { super::checks::$check(&mut super::Server::new()); })*
        }
        mod a_bucket {
            $(#[test] fn $check() { super::checks::$check(&mut super::Bucket::new()); })*
        }
        mod a_faulty_bucket {
            $(#[test] fn $check() { super::checks::$check(&mut super::FaultyBucket::new()); })*
        }
    };
}

conform!(
    has_what_it_acknowledged_at_every_moment,
    takes_each_op_twice_as_once,
    goes_on_where_it_broke_off,
    lets_old_files_count_when_they_are_whole,
    refuses_an_epoch_that_is_over_and_its_deletes,
    refuses_another_journal,
    refuses_a_fork_of_the_journal,
    refuses_a_fork_that_was_merged_since,
    says_that_it_lost_what_it_had_and_gets_it_again,
    keeps_what_it_has_when_something_damaged_comes,
    forgets_nothing_of_the_window_when_the_source_merges,
);
