//! Commands on a machine that has nothing of a journal but a bucket and credentials.

use super::shop::{Shop, head_of};
use crate::kit::Cli;
use crate::kit::s3::{Server, bring};
use afterimage_journal::layout;
use afterimage_s3::S3Sink;
use std::process::{Command, Stdio};

#[test]
fn a_bucket_is_listed_restored_verified_and_exported_like_a_state_directory() {
    let server = Server::start();
    let shop = Shop::new();
    let home = layout::journal_dir(shop.cli.state(), "shop").unwrap();
    // Sets the credentials in the environment of all that is started here.
    drop(server.bucket());
    bring(&home, &mut S3Sink::connect(&server.url()).unwrap(), 1 << 20);
    let bare = Cli::new(shop.cli.program(), server.place());
    for words in [["checkpoints", "web", "--json"], ["verify", "shop", "--json"]] {
        let ours = shop.cli.run(&words);
        let theirs = bare.run(&words);
        assert_eq!((ours.code, theirs.code), (0, 0), "{theirs:?}");
        if words[0] == "checkpoints" {
            assert_eq!(ours.json(), theirs.json());
        }
    }
    for (at, head) in [("latest", b'D'), ("#1", b'A')] {
        let to = shop.path(&format!("restored-{head}")).display().to_string();
        let restored = bare.run(&["restore", "web", "--at", at, "--to", &to, "--json"]);
        assert_eq!(restored.code, 0, "{restored:?}");
        assert_eq!(head_of(&restored.json(), "system")[0], head, "{restored:?}");
    }
    bare.ok(&["verify", "web", "--at", "latest"]);
    seeded(&shop, &bare);
    exported(&shop, &bare);
    refusals(&shop, &server);
    rotten_manifest(&server, &bare);
}

/// A newest manifest that is damaged is no bucket without a journal.
fn rotten_manifest(server: &Server, bare: &Cli) {
    let (store, prefix) = (server.patient(), server.url().key("shop/manifest/"));
    let newest = store.list(&prefix, "", false).unwrap().keys.pop().unwrap();
    let mut bytes = store.get(&newest, None).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    store.put(&newest, &bytes, None).unwrap();
    for words in [["checkpoints", "web"], ["checkpoints", "shop"], ["verify", "shop"]] {
        let outcome = bare.run(&words);
        assert_eq!(outcome.code, 3, "{outcome:?}");
        assert!(outcome.stderr.contains(&newest), "{outcome:?}");
    }
}

/// A site gets the journal from the bucket.
fn seeded(shop: &Shop, bare: &Cli) {
    let site = Cli::new(shop.cli.program(), shop.path("site"));
    site.ok(&["site", "enroll", "--group", "shop"]);
    let from = bare.state().display().to_string();
    site.ok(&["site", "seed", "shop", "--from", &from]);
    for at in ["latest", "#1"] {
        let [ours, theirs] =
            [&shop.cli, &site].map(|cli| crate::conform::source::images(cli, at).unwrap());
        assert!(ours == theirs, "{at} differs");
    }
    site.ok(&["verify", "shop"]);
}

fn exported(shop: &Shop, bare: &Cli) {
    let socket = shop.path("bucket.sock");
    let mut child = Command::new(bare.program())
        .args(["export", "web", "--at", "latest", "--disk", "system"])
        .arg("--socket")
        .arg(&socket)
        .arg("--state")
        .arg(bare.state())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(child.stdout.take().unwrap()),
        &mut ready,
    )
    .unwrap();
    let image = shop.path("exported.raw");
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let copied = Command::new("nbdcopy").arg(&uri).arg(&image).status();
    let _ = child.kill();
    let _ = child.wait();
    assert!(copied.unwrap().success(), "{ready}");
    assert_eq!(std::fs::read(&image).unwrap()[0], b'D');
}

fn refusals(shop: &Shop, server: &Server) {
    let program = shop.cli.program();
    let refused = |state: &str, words: &[&str]| Cli::new(program, state).run(words);
    let none = refused(&server.place(), &["checkpoints", "nobody"]);
    assert!(none.code == 2 && none.stderr.contains("groups: shop"), "{none:?}");
    let empty = refused(&server.place().replace("/site", "/other"), &["checkpoints", "web"]);
    assert!(empty.code == 2 && empty.stderr.contains("no journal"), "{empty:?}");
    let wrong = refused(&server.place().replace("vault", "attic"), &["checkpoints", "web"]);
    assert!(wrong.code == 4 && wrong.stderr.contains("NoSuchBucket"), "{wrong:?}");
    let option = refused("s3://vault/site?colour=red", &["checkpoints", "web"]);
    assert!(option.code == 2 && option.stderr.contains("colour"), "{option:?}");
    let status = refused(&server.place(), &["status"]);
    assert!(status.code != 0 && status.stderr.contains("is a bucket"), "{status:?}");
    let bare = Command::new(program)
        .args(["checkpoints", "web", "--state", &server.place()])
        .env_remove("AWS_ACCESS_KEY_ID")
        .env("HOME", "/nonexistent")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&bare.stderr);
    assert!(bare.status.code() == Some(2) && said.contains("AWS_ACCESS_KEY_ID"), "{said}");
}
