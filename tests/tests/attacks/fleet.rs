//! A whole fleet that comes back at one moment, as after a power cut.

use std::time::{Duration, Instant};

use pithead_hop::keys::{Held, KeyClient};
use pithead_sealing::Site as SiteName;
use pithead_tests::{
    authority::AUTHORITY,
    client::Client,
    program::PATIENCE,
    site::{KeySource, SITE, Site, SiteOptions},
};
use tokio::task::JoinSet;

#[tokio::test(flavor = "multi_thread")]
async fn some_hundred_devices_that_connect_at_once_are_all_served() {
    let count = if pithead_tests::long() { 2_000 } else { 300 };
    let options = SiteOptions { keys: KeySource::Bundle, ..SiteOptions::default() };
    let mut site = Site::create(options).await.unwrap();
    site.start_gateway().await.unwrap();
    let (to, ca) = (site.gateway_address(), site.ca.path().to_owned());
    let identities: Vec<_> =
        (0..count).map(|number| site.identity_of(&format!("truck-{number}")).unwrap()).collect();
    let mut fleet = JoinSet::new();
    let began = Instant::now();
    for identity in identities {
        let ca = ca.clone();
        fleet.spawn(async move {
            let client = Client::connect(to, &ca, Some(&identity)).await.unwrap().expect("it is let in");
            let mut keys = KeyClient::new(client.connection(), AUTHORITY, SiteName::new(SITE).unwrap());
            keys.fetch(&Held::default(), PATIENCE).await.expect("it is served");
            began.elapsed()
        });
    }
    let all = async {
        let mut times = Vec::new();
        while let Some(time) = fleet.join_next().await {
            times.push(time.unwrap());
        }
        times
    };
    let mut times = tokio::time::timeout(PATIENCE, all).await.expect("nobody waits for ever");
    times.sort_unstable();
    let of = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64();
    println!("{count} devices at once: half after {:.2} s, all after {:.2} s", of(50), of(100));
    let admin = site.gateway().unwrap().admin();
    let counted = async |metric: &str, label: &str| admin.metric_where(metric, label).await.unwrap() as u64;
    assert_eq!(counted("pithead_handshakes_total", "\"ok\"").await, count);
    assert_eq!(counted("pithead_connections_refused_total", "").await, 0);
    assert!(times.last().is_some_and(|last| *last < PATIENCE - Duration::from_secs(1)));
    site.stop().await.unwrap();
}
