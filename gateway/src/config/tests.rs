use pithead_hop::objects::Credentials;
use pithead_hop::program::traces::COMPILED_IN;
use pithead_hop::tls::CrlExpiry;

use super::ingest::validity;
use super::relay::{answer_timeout, window};
use super::spool::replicas;
use super::*;

fn load(text: &str) -> Result<Config, ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.toml");
    std::fs::write(&path, text).unwrap();
    Config::load(&path)
}

#[test]
fn the_template_loads_and_says_the_defaults() {
    let config = load(TEMPLATE).unwrap();
    assert_eq!(config.stop.spool, Stop::default().spool);
    assert_eq!(config.spool.max_size, Spool::default().max_size);
    assert_eq!(config.keys.max_interval, max_interval());
    let relay = config.relay.unwrap();
    assert_eq!((relay.window, relay.answer_timeout, relay.rate), (window(), answer_timeout(), None));
    assert_eq!(config.admin.listen, Admin::default().listen);
    assert_eq!(config.ingest.limits, Limits::default());
    assert_eq!(config.ingest.crl_expiry, CrlExpiry::UseStale);
    assert!(config.network.is_none() && config.enroll.is_none());
}

#[test]
fn every_limit_of_the_port_is_in_the_template_with_its_default() {
    // `stop_grace` is [stop] intake here.
    let rest = TEMPLATE.split("\n[ingest.limits]\n").nth(1).unwrap();
    // The next section may be one that is off.
    let section = rest.split("\n[").next().unwrap().split("\n#[").next().unwrap();
    let settings: String = section
        .lines()
        .filter_map(|line| line.strip_prefix('#'))
        .filter(|line| line.contains(" = ") && line.starts_with(|c: char| c.is_ascii_lowercase()))
        .map(|line| format!("{line}\n"))
        .collect();
    assert_eq!(toml::from_str::<Limits>(&settings).unwrap(), Limits::default());
    let written = toml::to_string(&Limits::default()).unwrap();
    for key in written.lines().filter_map(|line| line.split(" = ").next()).filter(|key| *key != "stop_grace")
    {
        assert!(settings.lines().any(|line| line.starts_with(&format!("{key} = "))), "{key} is missing");
    }
}

#[test]
fn limits_that_make_no_sense_are_refused_with_their_section_and_key() {
    for (key, value) in [
        ("connections", "0"),
        ("stream_window", "\"4GiB\""),
        ("frame", "\"1KiB\""),
        ("keepalive_timeout", "\"0s\""),
    ] {
        let commented = TEMPLATE.lines().find(|line| line.starts_with(&format!("#{key} = "))).unwrap();
        let error = load(&TEMPLATE.replace(commented, &format!("{key} = {value}"))).unwrap_err().to_string();
        assert!(error.contains(&format!("[ingest.limits] `{key}`")), "{error}");
    }
    let network = |line: &str| {
        let template = TEMPLATE.replace("#request = \"4MiB\"", "request = \"5MiB\"");
        load(&format!("{template}\n[network]\nlisten = \"0.0.0.0:7445\"\n[network.limits]\n{line}\n"))
    };
    network("connections = 8").unwrap();
    for (key, value) in [("frame", "\"1KiB\""), ("connections", "0"), ("unfinished", "\"4MiB\"")] {
        let error = network(&format!("{key} = {value}")).unwrap_err().to_string();
        assert!(error.contains(&format!("[network.limits] `{key}`")), "{error}");
    }
    let error = load(&TEMPLATE.replace("#window = \"8MiB\"", "window = \"1KiB\"")).unwrap_err().to_string();
    assert!(error.contains("[ingest.envelopes] `window`"), "{error}");
    let error = load(&TEMPLATE.replace("#session_burst = 40320", "session_burst = 0")).unwrap_err();
    assert!(error.to_string().contains("`session_burst`"), "{error}");
}

/// The template with everything in it that is commented out.
fn uncommented() -> String {
    TEMPLATE
        .lines()
        .map(|line| match line.strip_prefix("#") {
            // "#key = value" is a key, "#[name]" a section with its default, "# words" is prose.
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => {
                format!("{rest}\n")
            }
            _ => format!("{line}\n"),
        })
        .collect()
}

/// All of it that can stand together in this build: one source of statements, and traces where they can be exported.
fn all_on() -> String {
    let mut section = String::new();
    let lines = uncommented();
    let kept = lines.lines().filter(|line| {
        if line.starts_with('[') {
            section = (*line).to_owned();
        }
        !line.starts_with("bundle") && (COMPILED_IN || section != "[traces]")
    });
    let on: String = kept.map(|line| format!("{line}\n")).collect();
    // A store for large envelopes is for lanes that are shared, and what stands below its URL is for a bucket.
    let on = on.replace("engine = \"embedded\"", "engine = \"jetstream\"");
    on.replace("\"file:///mnt/pit-7/large\"", "\"s3://pit-7/large\"")
}

#[test]
fn every_key_that_is_commented_out_in_the_template_is_known() {
    let error = load(&uncommented()).map(|_| ()).map_err(|error| error.to_string());
    // All at once they contradict each other in one thing, which is found after every key was known.
    assert!(error.is_err_and(|text| text.contains("both `upstream` and `bundle`")));
}

#[test]
fn the_sections_that_are_off_in_the_template_are_good_as_they_stand() {
    let config = load(&all_on()).unwrap();
    let enroll = config.enroll.unwrap();
    assert!(enroll.listen.is_some() && enroll.address.is_some() && !enroll.endpoints.is_empty());
    assert_eq!(enroll.validity, validity());
    assert_eq!(config.network.unwrap().limits, Limits::default());
}

#[test]
fn all_ports_together_fit_into_the_file_descriptors() {
    let alone = load(TEMPLATE).unwrap();
    let (certificate, network, room) = alone.fitted(1024);
    assert_eq!((certificate.connections, network, room), (1024 - 128, None, Some(1024 - 128)));
    assert_eq!(alone.fitted(20_000).2, None);

    let all = load(&all_on()).unwrap();
    assert_eq!(all.asked_connections(), 2 * Limits::default().connections);
    let (certificate, network, room) = all.fitted(1024);
    let left = 1024 - 128 - enroll::limits().connections;
    assert_eq!(room, Some(left));
    assert_eq!((certificate.connections, network.unwrap().connections), (left / 2, left / 2));
    assert_eq!(all.fitted(20_000).2, None);
}

#[test]
fn a_port_has_one_way_of_knowing_who_comes() {
    for section in ["network", "enroll"] {
        let more = format!("\n[{section}]\nlisten = \"0.0.0.0:7443\"\n");
        let more = if section == "enroll" { more + "ca_key = \"k\"\n" } else { more };
        let error = load(&format!("{TEMPLATE}{more}")).unwrap_err().to_string();
        assert!(error.contains("same address"), "{error}");
    }
}

#[test]
fn a_misspelt_key_is_shown_with_a_caret_and_what_was_meant() {
    let error = load(&TEMPLATE.replace("data_dir", "data_dri")).unwrap_err().to_string();
    assert!(error.contains("did you mean `data_dir`?"), "{error}");
    assert!(error.contains('^'), "{error}");
}

#[test]
fn a_configuration_without_a_source_of_keys_is_refused() {
    let without: String = TEMPLATE
        .lines()
        .filter(|line| !line.starts_with("upstream = "))
        .map(|line| format!("{line}\n"))
        .collect();
    let error = load(&without).unwrap_err().to_string();
    assert!(error.contains("`upstream` or `bundle`"), "{error}");
}

fn into_a_store(store: &str) -> Result<Config, ConfigError> {
    let begin = TEMPLATE.find("[relay]\n").unwrap();
    let end = begin + TEMPLATE[begin..].find("\n[admin]").unwrap();
    let relay = format!("[relay]\nkind = \"object_store\"\n{store}");
    load(&format!("{}{relay}{}", &TEMPLATE[..begin], &TEMPLATE[end..]))
}

#[test]
fn a_relay_into_a_store_has_the_defaults_of_the_template_and_no_far_end() {
    let config =
        into_a_store("[relay.store]\nurl = \"s3://pits/sealed\"\nregion = \"eu-central-1\"").unwrap();
    let relay = config.relay.unwrap();
    assert!(relay.peer().is_none());
    let store = relay.store().unwrap();
    for (key, value) in [
        ("bundle_size", serde_json::to_string(&store.bundle_size).unwrap()),
        ("bundle_delay", serde_json::to_string(&store.bundle_delay).unwrap()),
        ("request_timeout", serde_json::to_string(&store.request_timeout).unwrap()),
    ] {
        assert!(TEMPLATE.contains(&format!("#{key} = {}\n", value.trim())), "{key} = {value}");
    }
    let settings = store.settings().unwrap();
    assert!(matches!(settings.credentials, Credentials::Environment { profile: None }));
    assert_eq!(settings.retries, 0, "nothing goes out that was not paid for");
    let relay = load(TEMPLATE).unwrap().relay.unwrap();
    assert!(relay.peer().is_some() && relay.store().is_none());
}

#[test]
fn what_a_store_cannot_be_is_refused_with_its_key() {
    let region = "region = \"x\"";
    for (store, words) in [
        ("", "needs [relay.store]"),
        ("endpoint = \"a:1\"\n[relay.store]\nurl = \"file:///a\"", "has that in [relay.store]"),
        ("[relay.store]\nurl = \"ftp://a\"", "neither s3://"),
        ("[relay.store]\nurl = \"s3://pits\"", "needs `region`"),
        ("[relay.store]\nurl = \"s3://pits\"\nendpoint = \"http://10.0.0.1\"", "is not encrypted"),
        (
            &format!("[relay.store]\nurl = \"s3://pits\"\n{region}\nbundle_size = \"33MiB\""),
            "from 64KiB to 32MiB",
        ),
        (&format!("[relay.store]\nurl = \"s3://pits\"\n{region}\nbundle_delay = \"0s\""), "must be above 0"),
        (&format!("[relay.store]\nurl = \"s3://pits\"\n{region}\nbucket = \"b\""), "unknown field"),
    ] {
        let said = into_a_store(store).unwrap_err().to_string();
        assert!(said.contains(words), "{said}; expected: {words}");
    }
    let without = TEMPLATE.replace("\nca = \"/etc/pithead/cloud-ca.pem\"", "");
    let said = load(&without).unwrap_err().to_string();
    assert!(said.contains("needs `endpoint` and `ca`"), "{said}");
}

#[test]
fn a_stream_has_one_lane() {
    let both = TEMPLATE
        .replace("#first = []", "first = [\"alarms\"]")
        .replace("#third = []", "third = [\"alarms\"]");
    let error = load(&both).unwrap_err().to_string();
    assert!(error.contains("`alarms` both in `first` and in `third`"), "{error}");
    let wrong = TEMPLATE.replace("#first = []", "first = [\"no stream\"]");
    assert!(load(&wrong).unwrap_err().to_string().contains('^'));
}

#[test]
fn an_engine_that_is_not_described_or_described_wrongly_points_at_its_line() {
    // The section as it stands in the template, switched on.
    let off = TEMPLATE.split("#[spool.jetstream]\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let keys = off.lines().filter_map(|line| line.strip_prefix('#')).filter(|line| !line.starts_with(' '));
    let on: String = keys.map(|line| format!("{line}\n")).collect();
    let jetstream = load(&format!("{TEMPLATE}\n[spool.jetstream]\n{on}")).unwrap().spool.jetstream.unwrap();
    assert_eq!((jetstream.replicas, jetstream.monitor.len()), (replicas(), jetstream.servers.len()));
    let error = load(&TEMPLATE.replace("#engine = \"embedded\"", "engine = \"jetstream\"")).unwrap_err();
    assert!(error.to_string().contains("needs [spool.jetstream]"), "{error}");
    let section = |lines: &str| load(&format!("{TEMPLATE}\n[spool.jetstream]\n{lines}\n"));
    section("servers = [\"nats://127.0.0.1:4222\"]").unwrap();
    for (lines, words) in [
        ("servers = []", "`servers` names none"),
        ("servers = [\"nats://:x\"]", "`servers`: \"nats://:x\""),
        ("servers = [\"a:1\"]\nreplicas = 2", "`replicas` is 1, 3 or 5"),
        ("servers = [\"a:1\"]\nprefix = \"a.b\"", "`prefix`: \"a.b\""),
        ("servers = [\"a:1\"]\nmonitor = [\"http://a:8222\"]", "`monitor`: \"http://a:8222\""),
        ("servers = [\"a:1\"]\nmonitor = [\"a\"]", "`monitor`: \"a\""),
    ] {
        let error = section(lines).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains('^'), "{error}");
    }
    for lines in [
        "servers = [\"nats://pithead:s3cret@a:4222\"]",
        "servers = [\n  \"a:1\",\n  \"nats://s3cret@b:4222\",\n]",
        "servers = [\"a:1\"]\nmonitor = [\"s3cret@a:8222\"]",
    ] {
        let error = section(lines).unwrap_err().to_string();
        assert!(error.contains("file that `credentials` names") && error.contains('^'), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
    }
}

#[test]
fn a_store_for_large_envelopes_belongs_to_lanes_that_are_shared_and_points_at_its_line() {
    let shared = TEMPLATE.replace("#engine = \"embedded\"", "engine = \"jetstream\"");
    let with = |template: &str, lines: &str| {
        load(&format!(
            "{template}\n[spool.jetstream]\nservers = [\"a:1\"]\n[spool.jetstream.large]\n{lines}\n"
        ))
    };
    let config =
        with(&shared, "url = \"s3://pit-7/large\"\nendpoint = \"https://a\"\ncredentials = \"s3\"").unwrap();
    let (large, set) = config.large_store().unwrap();
    let settings = large.settings().unwrap();
    assert_eq!((set.as_str(), settings.url.as_str()), ("pithead-pit-7", "s3://pit-7/large"));
    // Who tries again by itself pays for the bytes; here it is the site's own network.
    assert!(settings.retries > 0 && large.credentials.as_ref().unwrap().is_absolute());
    for (template, lines, words) in [
        (TEMPLATE, "url = \"file:///mnt\"", "`large` is for `engine`"),
        (&shared, "url = \"/mnt\"", "neither s3://BUCKET/PREFIX nor file:///FOLDER"),
        (&shared, "url = \"s3://pit-7\"", "needs `region`"),
        (&shared, "url = \"s3://pit-7\"\nendpoint = \"http://10.0.0.1\"", "is not encrypted"),
        (&shared, "url = \"file:///mnt\"\nrequest_timeout = \"0s\"", "must be above 0"),
    ] {
        let error = with(template, lines).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains('^'), "{error}");
    }
    assert!(load(TEMPLATE).unwrap().large_store().is_none());
}

#[test]
fn a_damaged_file_is_read_or_refused_and_never_a_panic() {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |bound: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % bound
    };
    // Every key with its default, so that damage meets all of them.
    let uncommented: String = TEMPLATE
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    for _ in 0..2_000 {
        let mut bytes = uncommented.clone().into_bytes();
        for _ in 0..=below(4) {
            let at = below(bytes.len());
            match below(4) {
                0 => bytes[at] = below(128) as u8,
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, b"\"'[]{}=#.\\\n09-"[below(14)]),
                _ => bytes.swap(at, at / 2),
            }
        }
        let text = String::from_utf8(bytes).unwrap();
        match config::parse::<Config>(&text, "gateway.toml", ENV_PREFIX, []) {
            Ok(mut loaded) => drop(loaded.value.settle(&loaded.sources)),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

#[test]
fn paths_are_relative_to_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.toml");
    std::fs::write(&path, TEMPLATE.replace("/etc/pithead/root.cose", "root.cose")).unwrap();
    assert_eq!(Config::load(&path).unwrap().trust.root, folder.path().join("root.cose"));
}

#[test]
fn the_page_about_the_configuration_says_what_the_program_knows() {
    use pithead_hop::program::{config::reference::Reference, reference};
    let about = Reference {
        program: "pithead-gateway",
        template: TEMPLATE,
        prefix: ENV_PREFIX,
        live: Some(LIVE),
        // Said once for all ports, in [stop]; and as [ingest.limits].
        elsewhere: &["ingest.limits.stop_grace", "network.limits"],
    };
    let page = about.page::<Config>().unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/config-gateway.md");
    reference::keep(&path, &page).unwrap();
}

#[test]
fn the_sample_that_is_shipped_is_read() {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/gateway.toml");
    let config = Config::load(&sample).unwrap();
    assert_eq!(config.gateway.site.as_str(), "pit-7");
}

#[test]
fn what_does_not_go_together_points_at_its_line() {
    let line = |text: &str| TEMPLATE.lines().position(|line| line == text).unwrap() + 1;
    for (from, to, key) in [
        ("#min_interval = \"1min\"", "min_interval = \"1h\"", "[keys] `min_interval`"),
        (
            "#validity = \"730d\"",
            "#validity = \"730d\"\n[enroll]\nca_key = \"k\"\nvalidity = \"0s\"",
            "[enroll] `validity`",
        ),
        ("#rate = \"2MiB\"", "rate = \"0B\"", "[relay] `rate`"),
        ("#frame = \"16KiB\"", "frame = \"1KiB\"", "[ingest.limits] `frame`"),
        ("#window = \"8MiB\"", "window = \"1KiB\"", "[ingest.envelopes] `window`"),
        ("#listen = \"127.0.0.1:7480\"", "listen = \"0.0.0.0:7443\"", "[admin] and [ingest] `listen`"),
        ("#unfinished = \"16MiB\"", "stop_grace = \"1s\"", "[ingest.limits] `stop_grace`"),
    ] {
        let at = line(from) + to.matches('\n').count();
        let error = load(&TEMPLATE.replace(from, to)).unwrap_err().to_string();
        assert!(error.contains(&format!("gateway.toml:{at}:")) && error.contains(key), "{error}");
        assert!(error.contains(&format!("  {at} | ")) && error.contains('^'), "{error}");
    }
    // A key that is missing points at its section.
    let section = line("[keys]");
    let without = load(&TEMPLATE.replace("upstream_ca = ", "#upstream_ca = ")).unwrap_err().to_string();
    assert!(without.contains("needs `upstream_ca`") && without.contains("upstream = "), "{without}");
    let without = load(&TEMPLATE.replace("\nupstream", "\n#upstream")).unwrap_err().to_string();
    assert!(without.contains(&format!("gateway.toml:{section}:2: [keys] needs")), "{without}");
}
