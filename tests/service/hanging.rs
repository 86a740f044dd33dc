//! A disk that gives no answer costs nobody but who uses it.

use std::time::Duration;

use cinderblock::domain::{AccessType, Provisioning};
use cinderblock::error::ErrorKind;
use cinderblock::lvm::tag::{FsType, Usage};
use cinderblock::names::LvName;
use cinderblock::sim::{SimHost, World};
use cinderblock::units::Bytes;
use futures_util::future::join_all;
use tokio::time::Instant;

use crate::support::{Node, TWO_VGS, mounted, on_backend, staging, thin, volume};

/// Threads that calls which may hang have at once, for all that an agent does, are 512.
const THREADS_OF_ONE_DISK: usize = 60;

#[tokio::test(start_paused = true)]
async fn a_disk_that_gives_no_answer_takes_some_threads_and_no_more() {
    let host = SimHost::new(World::with_disks(&[Bytes::gib(20), Bytes::gib(20)]));
    let pools =
        TWO_VGS.replace("create: true", "create: true, thinPool: { size: 50%, overprovision: 4 }");
    let node = Node::start(&host, &pools);
    node.wait_ready().await;
    let ext4 = || mounted(FsType::Ext4);
    let mut all = Vec::new();
    for n in 0..20 {
        let a = node.create(on_backend(thin(&format!("pvc-a{n}")), "a")).await.unwrap().handle;
        node.stage(&a, ext4()).await.unwrap();
        all.push(a);
    }
    let b = node.create(on_backend(thin("pvc-b"), "b")).await.unwrap().handle;
    // A pool grows for what is promised of it.
    let large = volume("pvc-large", Provisioning::Thin, Usage::Block, 20);
    node.create(on_backend(large, "b")).await.unwrap();
    let fresh = volume("pvc-block", Provisioning::Thin, Usage::Block, 1);
    let pool = LvName::parse("pool0").unwrap();
    let size_of_pool = || host.world().vg("vg1").unwrap().lvs[&pool].size;
    let before = size_of_pool();

    host.silence(&["vg0-", "/dev/sda", "pvc-a"]);
    for round in 0..30 {
        let ask = join_all(all.iter().map(async |a| {
            let staged = node.stage(a, ext4()).await.unwrap_err();
            let measured = node.agent.statistics(a.clone(), staging(a)).await.unwrap_err();
            let healthy = node.agent.volume_health(a, &[]).await.unwrap_err();
            drop(node.unstage(a).await);
            for error in [staged, measured, healthy] {
                let kinds = [ErrorKind::Unavailable, ErrorKind::Pending];
                assert!(kinds.contains(&error.kind()), "{error:?}");
            }
        }));
        let others = async {
            let begun = Instant::now();
            node.stage(&b, ext4()).await.unwrap();
            node.agent.statistics(b.clone(), staging(&b)).await.unwrap();
            node.unstage(&b).await.unwrap();
            node.expand(&b, Bytes::mib(1024 + 64 * (round + 1))).await.unwrap();
            assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        };
        tokio::join!(ask, others);
        let threads = host.unanswered();
        assert!(threads > 0 && threads <= THREADS_OF_ONE_DISK, "round {round}: {threads}");
    }
    let b = node.create(on_backend(fresh, "b")).await.unwrap().handle;
    node.write(&b, AccessType::Block, "data").await;
    host.world().pool("vg1", "pool0").data_used = before.percent_floor(90);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(size_of_pool() > before, "the pool of the other volume group grows in time");

    host.silence(&[]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(host.unanswered(), 0);
    for a in &all {
        node.stage(a, ext4()).await.unwrap();
        node.unstage(a).await.unwrap();
        node.delete(a).await.unwrap();
    }
}
