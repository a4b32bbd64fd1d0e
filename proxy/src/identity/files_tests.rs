//! Files that change while they are watched.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::stat::Mode;
use rcgen::{CertificateParams, KeyPair};
use tokio::time::sleep;

use super::*;
use crate::config::snapshot::SharedSnapshot;
use crate::config::tls::SecretHandle;

fn certificate() -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["a".into()]).unwrap().self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

#[test]
fn names() {
    let pair = |chain: &str, key: &str| FileSecret::Certificate { chain: chain.into(), key: key.into() };
    for (name, wanted) in [
        ("file-cert:/a~/b", Some(pair("/a", "/b"))),
        ("file-cert:a.pem~b.pem", Some(pair("a.pem", "b.pem"))),
        ("file-cert:/a", None),
        ("file-cert:~/b", None),
        ("file-cert:/a~/b~/c", None),
        ("file-root:/a", Some(FileSecret::Roots("/a".into()))),
        ("file-root:system", Some(FileSecret::System)),
        ("file-root:", None),
        ("default", None),
        ("kubernetes://a/b", None),
    ] {
        assert_eq!(FileSecret::parse(name), wanted, "{name}");
    }
}

#[test]
fn what_is_no_use_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let ((chain, key), (_, other)) = (certificate(), certificate());
    for (name, text) in [("chain", &*chain), ("key", &*key), ("other", &*other), ("junk", "junk")] {
        fs::write(at(name), text).unwrap();
    }
    let read = |name: &str| FileSecret::parse(name).unwrap().read(name).map(drop).map_err(|e| e.to_string());
    let pair = |chain: &str, key: &str| format!("file-cert:{}~{}", at(chain).display(), at(key).display());
    assert_eq!(read(&pair("chain", "key")), Ok(()));
    assert_eq!(read(&format!("file-root:{}", at("chain").display())), Ok(()));
    assert_eq!(read("file-root:system"), Ok(()));
    for (name, says) in [
        (pair("missing", "key"), "missing: No such file"),
        (pair("chain", "other"), "private_key: "),
        (pair("junk", "key"), "certificate_chain: has no certificate"),
        (format!("file-root:{}", at("junk").display()), "trusted_ca: has no certificate"),
        (format!("file-root:{}", folder.path().display()), "is no regular file"),
    ] {
        let error = read(&name).unwrap_err();
        assert!(error.contains(says) && !error.contains("PRIVATE"), "{name}: {error}");
    }
}

#[test]
fn only_regular_files_of_a_bounded_size_are_read_and_nothing_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    nix::unistd::mkfifo(&at("pipe"), Mode::S_IRWXU).unwrap();
    symlink("pipe", at("link")).unwrap();
    fs::File::create(at("large")).unwrap().set_len(MAX_BYTES + 1).unwrap();
    fs::write(at("full"), "-".repeat(MAX_BYTES as usize)).unwrap();
    for (path, says) in [
        (at("pipe"), "pipe: is no regular file"),
        (at("link"), "link: is no regular file"),
        ("/dev/zero".into(), "/dev/zero: is no regular file"),
        (at("large"), "large: has more than 4194304 bytes"),
        (at("full"), "trusted_ca: has no certificate"),
    ] {
        let (done, read) = mpsc::channel();
        let name = format!("file-root:{}", path.display());
        std::thread::spawn(move || {
            let error = FileSecret::parse(&name).unwrap().read(&name).map(drop).unwrap_err();
            let _ = done.send(error.to_string());
        });
        let error = read.recv_timeout(Duration::from_secs(10)).expect("an end");
        assert!(error.contains(says), "{}: {error}", path.display());
    }
}

#[tokio::test]
async fn nothing_is_watched_while_no_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let names = |names: &[&str]| names.iter().map(|&name| name.into()).collect();
    let mut watcher = Watcher::default();
    watcher.look(names(&["default", "ROOTCA"]), |_, _, _| panic!("no file"));
    assert!(watcher.changes.is_none());
    fs::write(folder.path().join("roots"), certificate().0).unwrap();
    let name = format!("file-root:{}", folder.path().join("roots").display());
    let mut news = 0;
    for _ in 0..2 {
        watcher.look(names(&[&name]), |_, _, _| news += 1);
    }
    assert!(watcher.changes.is_some() && news == 1, "{news}");
    watcher.look(names(&[]), |_, _, _| panic!("no file"));
    assert!(watcher.changes.is_none() && watcher.kept.good.is_empty());
}

/// Waits until `handle` holds another certificate than `before`.
async fn changed(handle: &SecretHandle, before: Option<&[u8]>) -> Vec<u8> {
    let limit = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        let held = handle.certificate().map(|held| held.cert[0].to_vec());
        if let Some(held) = held.filter(|held| Some(&**held) != before) {
            return held;
        }
        assert!(std::time::Instant::now() < limit, "nothing changes");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_swap_of_links_changes_what_is_in_force_and_what_is_bad_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // As kubelet mounts a Secret: files lead through `..data` to a folder of their version.
    let mount = |version: &str, (chain, key): &(String, String)| {
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("tls.crt"), chain).unwrap();
        fs::write(at(version).join("tls.key"), key).unwrap();
        symlink(version, at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
    };
    let (one, two, three) = (certificate(), certificate(), certificate());
    mount("..1", &one);
    for name in ["tls.crt", "tls.key"] {
        symlink(Path::new("..data").join(name), at(name)).unwrap();
    }
    let secrets = Arc::<Secrets>::default();
    tokio::spawn(keep(secrets.clone(), SharedSnapshot::default()));
    let name = format!("file-cert:{}~{}", at("tls.crt").display(), at("tls.key").display());
    let handle = secrets.file(&name);
    fill(&secrets);
    let first = handle.certificate().expect("filled at once").cert[0].to_vec();
    let second = {
        // Let the keeper look before anything changes.
        tokio::task::yield_now().await;
        mount("..2", &two);
        changed(&handle, Some(&first)).await
    };
    fs::write(at("..2").join("tls.key"), "junk").unwrap();
    mount("..3", &(three.0.clone(), two.1.clone()));
    // One more that is good, so that there is something to wait for.
    mount("..4", &three);
    let third = changed(&handle, Some(&second)).await;
    assert!(third != first && third != second);
    fs::remove_file(at("..data")).unwrap();
    sleep(Duration::from_millis(400)).await;
    assert_eq!(handle.certificate().unwrap().cert[0].to_vec(), third, "what was good stays");
    drop(handle);
    assert!(secrets.files().is_empty(), "nobody holds it");
}

#[tokio::test]
async fn files_may_come_with_their_folders_after_they_were_named() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("not/yet/there");
    let (chain, key) = certificate();
    let secrets = Arc::<Secrets>::default();
    tokio::spawn(keep(secrets.clone(), SharedSnapshot::default()));
    let name = format!("file-cert:{}~{}", deep.join("chain").display(), deep.join("key").display());
    let handle = secrets.file(&name);
    // Let the keeper look before anything is there.
    tokio::task::yield_now().await;
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("chain"), &chain).unwrap();
    fs::write(deep.join("key"), &key).unwrap();
    changed(&handle, None).await;
}

#[tokio::test(start_paused = true)]
async fn what_the_kernel_does_not_tell_of_is_found_after_a_while() {
    let folder = tempfile::tempdir().unwrap();
    let (here, elsewhere) = (folder.path().join("here"), folder.path().join("elsewhere"));
    for path in [&here, &elsewhere] {
        fs::create_dir(path).unwrap();
    }
    let (one, two) = (certificate().0, certificate().0);
    fs::write(here.join("roots"), one).unwrap();
    // Another name of the same file: the folder that is watched hears nothing.
    fs::hard_link(here.join("roots"), elsewhere.join("roots")).unwrap();
    let name: Arc<str> = format!("file-root:{}", here.join("roots").display()).into();
    let mut watcher = Watcher::default();
    let mut news = 0;
    watcher.look([name.clone()].into(), |_, _, _| news += 1);
    fs::write(elsewhere.join("roots"), two).unwrap();
    let begun = tokio::time::Instant::now();
    let day = Duration::from_secs(24 * 3600);
    tokio::time::timeout(day, watcher.changed()).await.expect("another look");
    assert!(begun.elapsed() > Duration::from_secs(60), "the kernel told of it");
    watcher.look([name].into(), |_, _, _| news += 1);
    assert_eq!(news, 2);
}
