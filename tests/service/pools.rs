//! Thin pools kept alive: they grow in time, and one that cannot says so before anybody loses a
//! write.

use std::time::Duration;

use cinderblock::domain::{
    BackendState, CowSize, CreateSnapshot, CreateVolume, PoolCapacity, Provisioning, Reason,
    Subject, VolumeAgent,
};
use cinderblock::error::ErrorKind;
use cinderblock::lvm::tag::{FsType, Tags, Usage};
use cinderblock::metrics::Metrics;
use cinderblock::names::{BackendName, CsiName, LvName};
use cinderblock::sim::{Fault, Mode, SimHost, World};
use cinderblock::units::Bytes;
use tokio::time::Instant;

use crate::pool_parts::RAID1 as RAID_POOL;
use crate::support::{CONFIG, Node, VG, thick, thin, volume};

const POOL: &str = "pool0";
/// Longer than a growth that was refused takes to be tried again.
const LONG: Duration = Duration::from_secs(90);

/// More than the pool has.
fn large(name: &str) -> CreateVolume {
    volume(name, Provisioning::Thin, Usage::Filesystem(FsType::Ext4), 30)
}

/// A node whose pool is promised to more than it holds.
async fn promised() -> Node {
    let node = Node::ready().await;
    node.create(large("pvc-1")).await.unwrap();
    node.host.arm(None);
    node
}

fn size(host: &SimHost) -> Bytes {
    host.world().vg(VG).unwrap().lvs[&LvName::parse(POOL).unwrap()].size
}

/// Uses so many percent of the pool's data.
fn fill(host: &SimHost, percent: u64) {
    let used = size(host).percent_floor(percent);
    host.world().pool(VG, POOL).data_used = used;
}

/// What is published of the pool.
fn pool(node: &Node) -> PoolCapacity {
    match &node.agent.inventory().borrow().backends.values().next().unwrap().state {
        BackendState::Ready { capacity, .. } => capacity.pool.unwrap(),
        other => panic!("{other:?}"),
    }
}

async fn soon() {
    tokio::time::sleep(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_pool_grows_before_it_is_full_by_one_process_each_time() {
    let node = promised().await;
    let before = size(&node.host);
    let runs = || node.host.programs_run().iter().filter(|run| run.starts_with("lvm")).count();
    let start = runs();
    fill(&node.host, 79);
    soon().await;
    assert_eq!((size(&node.host), runs()), (before, start), "below the threshold");
    fill(&node.host, 81);
    soon().await;
    let after = size(&node.host);
    assert!(after >= before.percent_floor(120), "{before} became {after}");
    assert!(after < before.percent_floor(121), "{before} became {after}");
    assert_eq!(runs(), start + 1, "one LVM process");
    assert_eq!(pool(&node).size, after, "published");
    assert!(pool(&node).data_used_bp < 7_000 && !pool(&node).stuck);

    node.host.world().pool(VG, POOL).metadata_used = Bytes::mib(35);
    let free = node.host.world().vg(VG).unwrap().free_extents();
    soon().await;
    assert_eq!(runs(), start + 2, "one LVM process for the metadata");
    let less = free.saturating_sub(node.host.world().vg(VG).unwrap().free_extents());
    assert_eq!(less.get(), 10, "twice 20 MiB: the metadata and its spare");
    assert!(pool(&node).metadata_used_bp < 6_000, "{:?}", pool(&node));
    soon().await;
    assert_eq!(runs(), start + 2, "no more than that");
}

/// What grows by itself.
#[derive(Clone, Copy, Debug)]
enum Grows {
    Data,
    Metadata,
    RaidPool,
    ThickSnapshot,
}

/// A node where it has room to grow.
async fn growable(what: Grows) -> Node {
    let node = match what {
        Grows::Data | Grows::Metadata => promised().await,
        Grows::RaidPool => {
            let host = SimHost::new(World::with_disks(&[Bytes::gib(20); 3]));
            let node = Node::start(&host, RAID_POOL);
            node.wait_ready().await;
            node.create(large("pvc-1")).await.unwrap();
            node
        }
        Grows::ThickSnapshot => {
            let node = Node::ready().await;
            let request = volume("pvc-0", Provisioning::Thick, Usage::Filesystem(FsType::Ext4), 3);
            let source = node.create(request).await.unwrap().handle;
            let name = CsiName::parse("snapshot-0").unwrap();
            let cow_size = CowSize::percent(10).unwrap();
            let request = CreateSnapshot { name, source, cow_size };
            node.agent.create_snapshot(request).await.unwrap();
            node
        }
    };
    node.host.arm(None);
    node
}

/// So much is used that it should grow, once.
fn use_up(host: &SimHost, what: Grows) {
    match what {
        Grows::Data | Grows::RaidPool => fill(host, 85),
        Grows::Metadata => host.world().pool(VG, POOL).metadata_used = Bytes::mib(35),
        Grows::ThickSnapshot => host.world().fill_snapshot(VG, "snap-0", Bytes::mib(400)),
    }
}

#[tokio::test(start_paused = true)]
async fn a_growth_can_be_cut_anywhere() {
    for (what, option) in [
        (Grows::Data, "lvextend"),
        (Grows::Metadata, "--poolmetadatasize"),
        (Grows::RaidPool, "lvextend"),
        (Grows::ThickSnapshot, "lvextend"),
    ] {
        let node = growable(what).await;
        let before = node.host.world().summary();
        use_up(&node.host, what);
        tokio::time::sleep(LONG).await;
        let host = node.end().await;
        let (effects, wanted) = (host.effects(), host.world().summary());
        assert_eq!(effects.len(), 1, "{what:?}: {effects:?}");
        assert!(effects[0].contains(option), "{what:?}: {effects:?}");
        assert_ne!(before, wanted, "{what:?}");
        for mode in Mode::ALL {
            let mut node = growable(what).await;
            node.host.arm(Some(Fault { at: 0, mode }));
            use_up(&node.host, what);
            tokio::time::sleep(LONG).await;
            if mode.kills() {
                node = node.reincarnate().await;
                tokio::time::sleep(LONG).await;
            }
            let troubles = node.agent.inventory().borrow().troubles.clone();
            assert!(troubles.is_empty(), "{what:?}, {mode:?}: {troubles:?}");
            assert!(!pool(&node).stuck, "{what:?}, {mode:?}");
            assert_eq!(node.end().await.world().summary(), wanted, "{what:?}, {mode:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn growths_that_are_cut_one_after_the_other_are_told_and_come_less_often() {
    let node = promised().await;
    let told = || {
        let about = Subject::Backend(BackendName::parse("fast").unwrap());
        let key = (about, Reason::ThinPoolCannotGrow);
        let sentence = node.agent.inventory().borrow().troubles.get(&key).cloned();
        assert_eq!(sentence.is_some(), pool(&node).stuck);
        sentence
    };
    let use_metadata = |percent| {
        let pool = LvName::parse(POOL).unwrap();
        let metadata = node.host.world().vg(VG).unwrap().lvs[&pool].parts[1].size;
        node.host.world().pool(VG, POOL).metadata_used = metadata.percent_floor(percent);
    };
    let (begun, mut tries) = (Instant::now(), Vec::new());
    while tries.len() < 6 {
        node.host.arm(Some(Fault { at: 0, mode: Mode::Cut }));
        // More than one growth brings, so that it is not enough when it is looked at after the cut.
        use_metadata(140);
        while node.host.effects().is_empty() {
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert!(begun.elapsed() < Duration::from_mins(10), "{tries:?}");
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        tries.push((begun.elapsed(), told()));
    }
    let gaps =
        tries.windows(2).map(|two| two[1].0.as_secs() - two[0].0.as_secs()).collect::<Vec<_>>();
    assert!(gaps[..2].iter().all(|gap| *gap < 5), "the first are tried again at once: {gaps:?}");
    assert!(gaps[2..].iter().all(|gap| *gap >= 60), "later ones are not: {gaps:?}");
    let told_from_the_third_on = [false, false, true, true, true, true];
    assert!(tries.iter().map(|it| it.1.is_some()).eq(told_from_the_third_on), "{tries:?}");
    let sentence = &tries[5].1.as_ref().unwrap().sentence;
    assert!(sentence.contains("lvextend vg0/pool0: killed by signal 9"), "{sentence}");
    // One that is not cut is the end of it.
    node.host.arm(None);
    use_metadata(90);
    tokio::time::sleep(LONG).await;
    assert_eq!(told(), None);
    assert!(pool(&node).metadata_used_bp < 7_000, "{:?}", pool(&node));
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_cannot_grow_takes_nothing_new_and_says_so() {
    let node = promised().await;
    let mut all = thick("pvc-thick");
    let free = node.host.world().vg(VG).unwrap().free_extents().get() * 4;
    all.range.required = Some(Bytes::mib(free));
    let thick = node.create(all).await.unwrap().handle;
    let runs = node.host.programs_run().len();
    fill(&node.host, 90);
    soon().await;
    assert!(pool(&node).stuck, "{:?}", pool(&node));
    assert!(pool(&node).room() > Bytes::ZERO, "the guard comes later");
    fill(&node.host, 96);
    soon().await;
    assert_eq!(pool(&node).room(), Bytes::ZERO);
    assert_eq!(node.host.programs_run().len(), runs, "LVM is not asked in vain");
    let source = node.agent.inventory().borrow().volumes.keys().find(|h| **h != thick).cloned();
    let errors = [
        node.create(thin("pvc-2")).await.unwrap_err(),
        node.snapshot("snapshot-1", &source.unwrap()).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
        let text = error.chain();
        assert!(text.contains("its data is 96.00% full: it cannot grow: add a disk"), "{text}");
    }
    let text = metrics(&node);
    assert!(
        text.contains(
            "cinderblock_thin_pool_growth_blocked{backend=\"fast\",volume_group=\"vg0\"} 1"
        ),
        "{text}"
    );
    // Room comes back, and nobody has to ask.
    node.delete(&thick).await.unwrap();
    soon().await;
    assert!(!pool(&node).stuck && pool(&node).data_used_bp < 8_100, "{:?}", pool(&node));
    node.create(thin("pvc-2")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_pool_filled_to_the_brim_grows_out_of_it() {
    let node = promised().await;
    let before = size(&node.host);
    fill(&node.host, 100);
    soon().await;
    assert!(size(&node.host) > before);
    assert!(pool(&node).healthy && pool(&node).data_used_bp < 9_000, "{:?}", pool(&node));
}

fn metrics(node: &Node) -> String {
    let metrics = Metrics::new("test");
    metrics.show_inventory(node.agent.inventory());
    metrics.text()
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_failed_is_neither_empty_nor_ready() {
    let node = promised().await;
    assert!(metrics(&node).contains("cinderblock_thin_pool_data_used_ratio{"));
    node.host.world().pool(VG, POOL).failed = true;
    soon().await;
    let text = metrics(&node);
    for name in ["thin_pool_healthy", "backend_ready"] {
        let line = format!("cinderblock_{name}{{backend=\"fast\",volume_group=\"vg0\"}} 0");
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("used_ratio{"), "{text}");
    let error = node.create(thin("pvc-2")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(error.chain().contains("takes no writes"), "{error:?}");
    // What has nothing to do with the pool is made.
    node.create(thick("pvc-3")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_pool_of_others_grows_only_when_that_is_asked_for() {
    let node = promised().await;
    node.host.world().retag(VG, POOL, |tags| *tags = Tags::default());
    node.host.world().pool(VG, POOL).queues = true;
    tokio::time::sleep(Duration::from_secs(15)).await;
    let before = size(&node.host);
    fill(&node.host, 90);
    soon().await;
    assert_eq!(size(&node.host), before);
    assert!(pool(&node).queues, "{:?}", pool(&node));
    let host = node.end().await;
    let config = CONFIG.replace("overprovision: 4", "overprovision: 4, autogrow: { by: 1Gi }");
    let node = Node::start(&host, &config);
    node.wait_ready().await;
    soon().await;
    assert_eq!(size(&node.host), before.saturating_add(Bytes::gib(3)), "until it is below 80%");
}

#[tokio::test(start_paused = true)]
async fn growth_can_be_switched_off() {
    let host = promised().await.end().await;
    let config = CONFIG.replace("overprovision: 4", "overprovision: 4, autogrow: { at: 100% }");
    let node = Node::start(&host, &config);
    node.wait_ready().await;
    let before = size(&node.host);
    fill(&node.host, 100);
    soon().await;
    assert_eq!(size(&node.host), before);
    assert!(!pool(&node).stuck && !pool(&node).healthy);
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_cannot_be_used_is_named_with_the_reason() {
    let node = promised().await;
    let handle = node.agent.inventory().borrow().volumes.keys().next().cloned().unwrap();
    node.host.world().stop_zeroing(VG, POOL);
    tokio::time::sleep(Duration::from_secs(15)).await;
    let errors = [
        node.expand(&handle, Bytes::gib(31)).await.unwrap_err(),
        node.snapshot("snapshot-1", &handle).await.unwrap_err(),
        node.create(thin("pvc-2")).await.unwrap_err(),
    ];
    for error in errors {
        assert!(error.chain().contains("lvchange --zero y vg0/pool0"), "{error:?}");
    }
    node.agent.delete_volume(handle).await.unwrap();
}
