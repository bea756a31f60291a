//! Who is let in, and whom an agent speaks to: each certificate with one thing wrong is refused, before a
//! message is parsed.

use super::bed::{Bed, GROUP, hello, until};
use super::forged::{Forged, ago, credentials, store};
use super::raw::Raw;
use afterimage_journal::wire::{Op, Sink, SinkError};
use afterimage_link::identity::{Credentials, Site, verify};
use afterimage_link::sink::renew;
use afterimage_link::{Error, Invitation, redeem};
use rcgen::ExtendedKeyUsagePurpose;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, SystemTime};
use tokio::io::AsyncReadExt;
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

const LIMIT: Duration = Duration::from_secs(10);

/// A client with this certificate is refused for good, and not a message of it was looked at.
#[track_caller]
fn refused(bed: &Bed, credentials: &Credentials, words: &str) {
    let before = bed.messages();
    store(bed, "forged", credentials);
    let error = bed.sink("forged").open(&hello(&credentials.group, 1)).unwrap_err();
    assert!(matches!(error, SinkError::Refused(_)), "{error:?}");
    assert!(error.to_string().contains(words), "{error}");
    assert_eq!(bed.messages(), before, "a message was parsed");
    assert!(bed.notes(|n| n.hellos.is_empty()));
}

#[test]
fn a_certificate_that_is_right_is_let_in() {
    // What the other tests forge differs from this in one thing each.
    let bed = Bed::new();
    let enrolled = bed.enroll(GROUP, "a");
    let forged = Forged::client(&bed, &enrolled, GROUP).sign(&bed.dir.path().join("site"));
    store(&bed, "forged", &credentials(&bed, GROUP, &forged));
    bed.sink("forged").open(&hello(GROUP, 1)).unwrap();
    assert!(bed.messages() > 0);
}

#[test]
fn another_authority_is_refused() {
    let bed = Bed::new();
    let enrolled = bed.enroll(GROUP, "a");
    let other = bed.dir.path().join("other");
    Site::open_or_make(&other).unwrap();
    let forged = Forged::client(&bed, &enrolled, GROUP).sign(&other);
    let credentials = credentials(&bed, GROUP, &forged);
    bed.notes(|n| n.hellos.clear());
    refused(&bed, &credentials, "does not accept");
}

#[test]
fn expired_and_early_certificates_are_refused() {
    let bed = Bed::new();
    let enrolled = bed.enroll(GROUP, "a");
    let site = bed.dir.path().join("site");
    let mut old = Forged::client(&bed, &enrolled, GROUP);
    old.until = ago(60);
    refused(&bed, &credentials(&bed, GROUP, &old.sign(&site)), "expired");
    let mut early = Forged::client(&bed, &enrolled, GROUP);
    early.from = SystemTime::now() + Duration::from_secs(600);
    let early = credentials(&bed, GROUP, &early.sign(&site));
    store(&bed, "early", &early);
    let before = bed.messages();
    bed.sink("early").open(&hello(GROUP, 1)).unwrap_err();
    assert_eq!(bed.messages(), before);
}

#[test]
fn a_certificate_for_another_group_is_refused() {
    let bed = Bed::new();
    let enrolled = bed.enroll("other", "a");
    // The agent comes for the group of the certificate that it should have.
    let site = bed.dir.path().join("site");
    let forged = Forged::client(&bed, &enrolled, "other").sign(&site);
    refused(&bed, &credentials(&bed, GROUP, &forged), "let this agent append");
    // The ledger says which group a serial is for, whatever the certificate says.
    let forged = Forged::client(&bed, &enrolled, GROUP).sign(&site);
    refused(&bed, &credentials(&bed, GROUP, &forged), "let this agent append");
    // With its own, and a hello for another group: that is the first message.
    let mut sink = bed.sink("a");
    assert!(matches!(sink.open(&hello(GROUP, 1)), Err(SinkError::Refused(_))));
    let mut raw = Raw::connect(&bed, "a");
    raw.hello();
    let said = String::from_utf8_lossy(&raw.rest(LIMIT)).into_owned();
    assert!(said.contains("the certificate is for group other"), "{said}");
    assert!(bed.notes(|n| n.hellos.is_empty()));
}

#[test]
fn a_certificate_without_a_group_or_with_two_is_refused() {
    let bed = Bed::new();
    let enrolled = bed.enroll(GROUP, "a");
    let mut none = Forged::client(&bed, &enrolled, GROUP);
    none.group = None;
    let none = none.sign(&bed.dir.path().join("site"));
    refused(&bed, &credentials(&bed, GROUP, &none), "");
}

#[test]
fn a_servers_certificate_is_no_clients() {
    let bed = Bed::new();
    let enrolled = bed.enroll(GROUP, "a");
    for usages in [vec![ExtendedKeyUsagePurpose::ServerAuth], vec![]] {
        let mut swapped = Forged::client(&bed, &enrolled, GROUP);
        swapped.usages = usages;
        let swapped = swapped.sign(&bed.dir.path().join("site"));
        refused(&bed, &credentials(&bed, GROUP, &swapped), "does not accept");
    }
}

#[test]
fn a_certificate_that_the_ledger_lost_is_refused() {
    let bed = Bed::new();
    bed.enroll(GROUP, "a");
    std::fs::remove_file(bed.dir.path().join("site/tls/ledger.json")).unwrap();
    let credentials = Credentials::load(&bed.credentials_dir("a")).unwrap().unwrap();
    refused(&bed, &credentials, "let this agent append");
}

#[test]
fn a_revoked_certificate_is_refused_and_its_link_closed() {
    let bed = Bed::new();
    let mut sink = bed.open();
    assert_eq!(bed.site.revoke(GROUP).unwrap(), 2, "the certificate, and the used invitation");
    let begin = std::time::Instant::now();
    let said = loop {
        match sink.ack(LIMIT) {
            Ok(None) => panic!("the link stands"),
            Ok(Some(_)) => {}
            Err(said) => break said,
        }
    };
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    assert!(
        matches!(said, SinkError::Refused(_)) && said.to_string().contains("revoked"),
        "{said}"
    );
    let credentials = Credentials::load(&bed.credentials_dir("a")).unwrap().unwrap();
    bed.notes(|n| n.hellos.clear());
    refused(&bed, &credentials, "revoked");
}

#[test]
fn nobody_without_a_certificate_says_a_word() {
    let bed = Bed::new();
    let fingerprint = *bed.site.fingerprint();
    // Who names the protocol of those who have certificates, and shows none; and no TLS at all.
    let mut config = Arc::unwrap_or_clone(verify::client_config(&fingerprint, None).unwrap());
    config.alpn_protocols = vec![verify::ALPN.to_vec()];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        use tokio::io::AsyncWriteExt;
        let tcp = tokio::net::TcpStream::connect(bed.addr).await.unwrap();
        let name = afterimage_link::identity::group_name(&fingerprint, GROUP);
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let mut stream = connector.connect(name.try_into().unwrap(), tcp).await.unwrap();
        let frame = super::raw::frame(1, &[]);
        let _ = stream.write_all(&frame).await;
        assert!(stream.read_to_end(&mut Vec::new()).await.is_err());
        let mut plain = tokio::net::TcpStream::connect(bed.addr).await.unwrap();
        plain.write_all(&[&frame[..], &[0; 100]].concat()).await.unwrap();
        let mut answer = Vec::new();
        let _ = plain.read_to_end(&mut answer).await;
        assert!(answer.len() < 16, "{answer:?}");
    });
    assert_eq!(bed.messages(), 0);
}

/// Who answers with this certificate is not spoken to: what came there after the handshake.
fn fake_site(bed: &Bed, (certificate, key): (Vec<u8>, Vec<u8>), credentials: &Credentials) {
    let (said, heard) = mpsc::channel();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    let chain = vec![CertificateDer::from(certificate), bed.site.authority().clone()];
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
    let provider = Arc::new(verify::provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![verify::ALPN.to_vec(), verify::ALPN_REDEEM.to_vec()];
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            for _ in 0..2 {
                let (tcp, _) = listener.accept().await.unwrap();
                let mut came = Vec::new();
                if let Ok(mut tls) = TlsAcceptor::from(Arc::new(config.clone())).accept(tcp).await {
                    let _ = tls.read_to_end(&mut came).await;
                }
                said.send(came).unwrap();
            }
        });
    });
    store(bed, "deceived", credentials);
    let error = bed.sink_at(addr, "deceived").open(&hello(GROUP, 1)).unwrap_err();
    assert!(matches!(error, SinkError::Refused(_)), "{error:?}");
    assert_eq!(heard.recv_timeout(LIMIT).unwrap(), Vec::<u8>::new(), "{error}");
    let invitation = bed.site.enroll(GROUP, 60).unwrap();
    let dir = bed.credentials_dir("deceived-redeem");
    let error = redeem(&addr.to_string(), &invitation, &dir).unwrap_err();
    assert!(matches!(error, Error::Refused(_)), "{error:?}");
    assert_eq!(heard.recv_timeout(LIMIT).unwrap(), Vec::<u8>::new(), "{error}");
    thread.join().unwrap();
}

#[test]
fn who_is_not_the_site_is_not_spoken_to() {
    let bed = Bed::new();
    let enrolled = bed.enroll(GROUP, "a");
    let site = bed.dir.path().join("site");
    let other = bed.dir.path().join("other");
    Site::open_or_make(&other).unwrap();
    fake_site(&bed, Forged::server(&bed).sign(&other), &enrolled);
    let mut expired = Forged::server(&bed);
    expired.until = ago(60);
    fake_site(&bed, expired.sign(&site), &enrolled);
    let mut other_name = Forged::server(&bed);
    other_name.name = Some("0123456789abcdef0123456789abcdef.afterimage".into());
    fake_site(&bed, other_name.sign(&site), &enrolled);
    let mut swapped = Forged::server(&bed);
    swapped.usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    fake_site(&bed, swapped.sign(&site), &enrolled);
    // An agent's own certificate.
    fake_site(&bed, Forged::client(&bed, &enrolled, GROUP).sign(&site), &enrolled);
}

#[test]
fn an_invitation_is_good_once_for_one_key() {
    let bed = Bed::new();
    let addr = bed.addr.to_string();
    let invitation = bed.site.enroll(GROUP, 600).unwrap();
    let first = redeem(&addr, &invitation, &bed.credentials_dir("a")).unwrap();
    assert_eq!(first.group, GROUP);
    // The answer was lost: the key waits still.
    let again = bed.credentials_dir("lost");
    let lost = bed.site.enroll(GROUP, 600).unwrap();
    redeem(&addr, &lost, &again).unwrap();
    let error = redeem(&addr, &invitation, &bed.credentials_dir("b")).unwrap_err();
    assert!(
        matches!(error, Error::Refused(_)) && error.to_string().contains("used before"),
        "{error}"
    );
    assert!(Credentials::load(&bed.credentials_dir("b")).unwrap().is_none());
    // The wrong secret: not told from an unknown invitation.
    let fresh = bed.site.enroll(GROUP, 600).unwrap();
    let wrong = Invitation { secret: Zeroizing::new([1; 32]), ..fresh.clone() };
    let unknown = Invitation { id: [1; 8], ..fresh.clone() };
    let errors = [&wrong, &unknown].map(|invitation| {
        redeem(&addr, invitation, &bed.credentials_dir("c")).unwrap_err().to_string()
    });
    assert_eq!(errors[0], errors[1]);
    redeem(&addr, &fresh, &bed.credentials_dir("c")).unwrap();
    // Expired while another one is open.
    let short = bed.site.enroll(GROUP, 1).unwrap();
    bed.site.enroll(GROUP, 600).unwrap();
    std::thread::sleep(Duration::from_millis(2100));
    let error = redeem(&addr, &short, &bed.credentials_dir("d")).unwrap_err();
    assert!(error.to_string().contains("no such invitation"), "{error}");
}

#[test]
fn a_lost_answer_is_asked_for_again_with_the_same_key() {
    let bed = Bed::new();
    let addr = bed.addr.to_string();
    let invitation = bed.site.enroll(GROUP, 600).unwrap();
    let dir = bed.credentials_dir("a");
    redeem(&addr, &invitation, &dir).unwrap();
    // As it was before the answer came: a key, and no certificate.
    let made: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join("credentials.json")).unwrap()).unwrap();
    let id = afterimage_link::identity::text::to_hex(&invitation.id);
    let pending = serde_json::json!({"purpose": format!("invitation {id}"), "key": made["key"]});
    std::fs::remove_file(dir.join("credentials.json")).unwrap();
    let path = dir.join("pending.json");
    std::fs::write(&path, pending.to_string()).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    redeem(&addr, &invitation, &dir).unwrap();
    bed.sink("a").open(&hello(GROUP, 1)).unwrap();
}

#[test]
fn that_an_invitation_was_used_is_on_the_disk_before_its_certificate_is_out() {
    let bed = Bed::new();
    let invitation = bed.site.enroll(GROUP, 600).unwrap();
    let ledger = bed.dir.path().join("site/tls/ledger.json");
    // A directory that can't be written to: nothing may be given out.
    let away = bed.dir.path().join("site/tls/ledger.tmp");
    std::fs::create_dir(&away).unwrap();
    let dir = bed.credentials_dir("a");
    let error = redeem(&bed.addr.to_string(), &invitation, &dir).unwrap_err();
    assert!(Credentials::load(&dir).unwrap().is_none(), "{error}");
    assert!(!std::fs::read_to_string(&ledger).unwrap().contains("used_by"));
    std::fs::remove_dir(&away).unwrap();
    redeem(&bed.addr.to_string(), &invitation, &dir).unwrap();
    assert!(std::fs::read_to_string(&ledger).unwrap().contains("used_by"));
}

#[test]
fn with_no_invitation_open_nobody_gets_in_to_try_one() {
    let bed = Bed::new();
    let invitation = Invitation {
        fingerprint: *bed.site.fingerprint(),
        id: [1; 8],
        secret: Zeroizing::new([2; 32]),
    };
    let error = redeem(&bed.addr.to_string(), &invitation, &bed.credentials_dir("a")).unwrap_err();
    assert!(matches!(error, Error::Refused(_)), "{error:?}");
    assert_eq!(bed.messages(), 0);
}

#[test]
fn both_ends_get_new_certificates_while_links_stand() {
    let bed = Bed::new();
    let mut sink = bed.open();
    let dir = bed.credentials_dir("a");
    let old = Credentials::load(&dir).unwrap().unwrap();
    let served = bed.site.server_key().unwrap();
    bed.site.rotate().unwrap();
    assert_ne!(served.cert[0], bed.site.server_key().unwrap().cert[0]);
    let new = renew(&bed.addr.to_string(), &dir).unwrap();
    assert_ne!(new.certificate(), old.certificate());
    // The old link stands until the new certificate is used; then the old one is good for nothing.
    std::thread::sleep(Duration::from_millis(1500));
    sink.apply(Op::Sync { token: 1, watermark: 1, wall_ns: 1 }).unwrap();
    assert_eq!(sink.ack(LIMIT).unwrap().unwrap().token, 1);
    let mut next = bed.sink("a");
    next.open(&hello(GROUP, 1)).unwrap();
    until("the old certificate is revoked", LIMIT, || {
        bed.site.ledger().certificates.iter().filter(|c| c.revoked_s.is_some()).count() == 1
    });
    store(&bed, "old", &old);
    let error = bed.sink("old").open(&hello(GROUP, 1)).unwrap_err();
    assert!(error.to_string().contains("revoked"), "{error}");
    next.apply(Op::Sync { token: 2, watermark: 1, wall_ns: 1 }).unwrap();
    assert_eq!(next.ack(LIMIT).unwrap().unwrap().token, 2);
}

#[test]
fn an_agent_renews_its_certificate_by_itself_when_it_is_due() {
    let bed = Bed::new();
    let enrolled = bed.enroll(GROUP, "a");
    let mut due = enrolled.clone();
    due.validity.from_s -= 80 * 86400;
    due.validity.until_s = afterimage_link::identity::now_s() + 86400;
    store(&bed, "a", &due);
    let mut sink = bed.sink("a");
    sink.open(&hello(GROUP, 1)).unwrap();
    let now = Credentials::load(&bed.credentials_dir("a")).unwrap().unwrap();
    assert_ne!(now.certificate(), enrolled.certificate());
    assert!(now.validity.renew_at_s() > afterimage_link::identity::now_s());
}

#[test]
fn secrets_that_others_can_read_are_not_used() {
    use std::os::unix::fs::PermissionsExt;
    let bed = Bed::new();
    bed.enroll(GROUP, "a");
    let modes = |dir: &std::path::Path| -> Vec<u32> {
        let files = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
        files.map(|p| std::fs::metadata(p).unwrap().permissions().mode() & 0o777).collect()
    };
    for dir in [bed.dir.path().join("site/tls"), bed.credentials_dir("a")] {
        assert!(modes(&dir).iter().all(|m| *m == 0o600), "{dir:?}");
        assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    }
    let path = bed.credentials_dir("a").join("credentials.json");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let error = bed.sink("a").open(&hello(GROUP, 1)).unwrap_err();
    assert!(error.to_string().contains("chmod 600"), "{error}");
}
