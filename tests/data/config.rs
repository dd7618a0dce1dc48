//! Values of a data set's configuration that cannot work, and its schema.

use super::bucket;
use vtrain::data::Config;
use vtrain::data::dataset::Layout;
use vtrain::problems::Problems;

fn problems(config: &Config) -> Vec<String> {
    let problems = Problems::of(|problems| problems.section("datasets[0]", |problems| config.check(problems)));
    problems
        .into_iter()
        .map(|(path, message)| format!("{path}: {message}"))
        .collect()
}

fn named() -> Config {
    Config {
        path: "clips".into(),
        ..Config::default()
    }
}

#[test]
fn the_defaults_need_only_a_path() {
    assert_eq!(problems(&named()), [""; 0]);
    let without = problems(&Config::default());
    assert_eq!(without, ["datasets[0].path: is required: the folder of the data set"]);
}

#[test]
fn every_value_out_of_range_is_reported_at_once() {
    let buckets = vec![
        bucket(9, 32, 48),
        bucket(0, 32, 48),
        bucket(9, 32, 48),
        bucket(9, 480, 72_000),
    ];
    let config = Config {
        repeats: 0,
        fps: Some(f64::NAN),
        buckets,
        ..named()
    };
    let problems = problems(&config);
    let keys: Vec<_> = problems.iter().filter_map(|p| p.split(": ").next()).collect();
    let wanted = ["repeats", "fps", "buckets[1]", "buckets[2]", "buckets[3]"];
    assert_eq!(keys, wanted.map(|key| format!("datasets[0].{key}")));
    assert!(problems[3].contains("the same as buckets[0]"), "{}", problems[3]);
}

#[test]
fn a_rate_must_be_above_zero_and_finite() {
    for fps in [0.0, -8.0, f64::INFINITY, f64::NAN] {
        assert_eq!(
            problems(&Config {
                fps: Some(fps),
                ..named()
            })
            .len(),
            1,
            "{fps}"
        );
    }
}

#[test]
fn a_key_that_the_layout_does_not_read_is_a_problem() {
    let pairs = Config {
        layout: Layout::Pairs,
        captions: Some("prompt.txt".into()),
        ..named()
    };
    let message = "captions: is not read with `layout: pairs`; remove it, or change the layout";
    assert_eq!(problems(&pairs), [format!("datasets[0].{message}")]);
    let both = Config {
        videos: Some("v.txt".into()),
        metadata: Some("m.csv".into()),
        ..named()
    };
    assert_eq!(problems(&both).len(), 1);
}

#[test]
fn a_config_is_read_with_its_usual_keys_and_unknown_ones_are_errors() {
    let config: Config = serde_json::from_str(
        r#"{"path": "disney", "captions": "prompt.txt", "buckets": [[49, 480, 720], [17, 256, 256]],
            "frames": "head", "crop": "fit", "on_invalid_clip": "skip", "layout": "lines"}"#,
    )
    .unwrap();
    assert_eq!(config.buckets, [bucket(49, 480, 720), bucket(17, 256, 256)]);
    assert_eq!(
        serde_json::to_value(&config.buckets).unwrap(),
        serde_json::json!([[49, 480, 720], [17, 256, 256]])
    );
    assert!(serde_json::from_str::<Config>(r#"{"pth": "disney"}"#).is_err());
    assert!(serde_json::from_str::<Config>(r#"{"buckets": [[49, 480]]}"#).is_err());
    assert!(serde_json::from_str::<Config>(r#"{"buckets": [[49, 480, -1]]}"#).is_err());
}

#[test]
fn the_schema_says_that_a_bucket_is_a_list_of_three() {
    let schema = schemars::schema_for!(Config);
    let bucket = schema.pointer("/$defs/Bucket").unwrap();
    assert_eq!((&bucket["minItems"], &bucket["maxItems"]), (&3.into(), &3.into()));
    let path = schema.pointer("/properties/path/description").unwrap();
    assert!(path.as_str().unwrap().starts_with("Folder of the data set"));
}
