//! Walkthroughs are pages that the cluster's suite can run and clean up after; that suite is long, this is known at once.

use osier_tests::walkthrough::expected;
use osier_tests::walkthrough::page::{self, Step};

#[test]
fn pages_are_read_and_compared_as_they_are_written() {
    page::checks::a_page_is_read_for_both_kinds_of_run();
    page::checks::what_is_no_page_is_refused_with_its_line();
    expected::checks::lines_match_in_order_with_gaps();
    expected::checks::a_difference_names_the_line();
}

#[test]
fn walkthroughs_make_their_namespace_and_delete_it() {
    let pages = super::files(&super::root().join("docs/walkthroughs"), ".md");
    let pages: Vec<_> = pages.iter().filter(|page| !page.ends_with("README.md")).collect();
    assert!(!pages.is_empty(), "there are walkthroughs");
    for page in pages {
        for injected in [false, true] {
            let steps = page::steps(&super::text(page), injected);
            let steps = steps.unwrap_or_else(|error| panic!("{}: {error}", page.display()));
            let namespaces = page::namespaces(&steps);
            assert!(!namespaces.is_empty(), "{}: no `kubectl create namespace NAME`", page.display());
            for namespace in namespaces {
                assert!(namespace.starts_with("walk-"), "{}: {namespace}", page.display());
                let end = format!("kubectl delete namespace {namespace}");
                let deleted = |step: &Step| matches!(step, Step::Run { command, .. } if *command == end);
                assert!(steps.iter().any(deleted), "{}: no `{end}`", page.display());
            }
        }
    }
}
