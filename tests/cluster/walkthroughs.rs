//! Walkthroughs by hand on a cluster that runs: `walkthroughs [PAGE[:plain|:injected]]…`, with KUBECONFIG set and kubectl on PATH.

mod walkthrough;

use std::path::PathBuf;
use std::process::ExitCode;

use walkthrough::Environment;

const PAGES: [&str; 5] = ["my-nginx", "redis", "guestbook", "wordpress", "workloads"];

fn main() -> ExitCode {
    let kubeconfig =
        PathBuf::from(std::env::var_os("KUBECONFIG").expect("KUBECONFIG says where the cluster is"));
    let pictures = std::env::temp_dir().join("osier-walkthroughs");
    std::fs::create_dir_all(&pictures).expect("the temporary folder can be written");
    let environment = Environment { kubeconfig: &kubeconfig, programs: &[], hub: None, pictures: &pictures };
    let asked: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let pages = if asked.is_empty() { PAGES.map(str::to_owned).to_vec() } else { asked };
    let mut failed = false;
    for page in pages {
        let (page, kinds) = match page.split_once(':') {
            Some((page, kind)) => (page.to_owned(), vec![kind == "injected"]),
            None => (page, vec![false, true]),
        };
        for injected in kinds {
            let kind = if injected { "injected" } else { "plain" };
            println!("{page}, {kind}");
            match walkthrough::run(&page, injected, &environment) {
                Ok(()) => println!("ok  {page}, {kind}"),
                Err(error) => {
                    failed = true;
                    println!("FAILED  {error:#}");
                }
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
