//! In which order GPTQ visits the columns of a weight, and which columns share a grid.
//!
//! `d` is the diagonal of the Hessian: how much an error in a column costs. Columns visited early are compensated by all
//! that follow, so dear columns go first. With `g` columns to a group:
//!
//! | order    | visited by                                   | group of column `i`       | grids fitted                    |
//! |----------|----------------------------------------------|---------------------------|---------------------------------|
//! | `none`   | `i`                                          | `i / g`                   | at the group's first column     |
//! | `desc`   | `d` descending                               | `position of i / g`       | at the group's first column     |
//! | `static` | `d` descending                               | `i / g`                   | beforehand, on the given weight |
//! | `group`  | groups by their largest `d`, `d` inside them | `i / g`                   | at the group's first column     |
//!
//! Only `desc` leaves a trace on disk (its group index is no run of `i / g`). Equal `d` are visited in stored order.

use kernels::{ActOrder, QuantSpec, block_solve::ColumnPlan};

/// The plan for a weight whose inputs have the Hessian diagonal `diagonal`.
pub fn column_plan(diagonal: &[f32], spec: &QuantSpec) -> ColumnPlan {
    let inputs = diagonal.len();
    let per_group = spec.columns_per_group(inputs);
    let stored_groups: Vec<u32> = (0..inputs).map(|i| (i / per_group) as u32).collect();
    let order = match spec.act_order {
        ActOrder::None => (0..inputs).collect(),
        ActOrder::Desc | ActOrder::Static => descending((0..inputs).collect(), |&i| diagonal[i]),
        ActOrder::Group => group_by_group(diagonal, per_group),
    };
    let group_index = if spec.act_order == ActOrder::Desc { groups_along(&order, per_group) } else { stored_groups };
    ColumnPlan { order, group_index, fixed_grids: spec.act_order == ActOrder::Static }
}

/// Groups ordered by their largest entry, the columns of a group by their own.
fn group_by_group(diagonal: &[f32], per_group: usize) -> Vec<usize> {
    let columns: Vec<usize> = (0..diagonal.len()).collect();
    let groups = columns.chunks(per_group).map(|group| descending(group.to_vec(), |&i| diagonal[i])).collect();
    descending(groups, |group: &Vec<usize>| diagonal[group[0]]).concat()
}

/// `group_index[order[position]] = position / per_group`.
fn groups_along(order: &[usize], per_group: usize) -> Vec<u32> {
    let mut group_index = vec![0; order.len()];
    for (position, &column) in order.iter().enumerate() {
        group_index[column] = (position / per_group) as u32;
    }
    group_index
}

/// Stable, so that ties keep the stored order.
fn descending<T>(mut items: Vec<T>, key: impl Fn(&T) -> f32) -> Vec<T> {
    items.sort_by(|a, b| key(b).total_cmp(&key(a)));
    items
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::ScaleSearch;
    use proptest::prelude::*;

    fn spec(act_order: ActOrder, group_size: Option<usize>) -> QuantSpec {
        QuantSpec {
            bits: 4,
            group_size,
            symmetric: false,
            act_order,
            scale_search: ScaleSearch::MinMax,
            smallest_zero: 0,
        }
    }

    /// Ten columns in groups of 8 and 2, with a tie.
    const DIAGONAL: [f32; 10] = [1.0, 5.0, 2.0, 2.0, 0.0, 3.0, 4.0, 0.5, 9.0, 0.1];

    #[test]
    fn each_order_is_what_its_row_of_the_table_says() {
        let plan = |order| column_plan(&DIAGONAL, &spec(order, Some(8)));
        let none = plan(ActOrder::None);
        assert_eq!(none.order, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(none.group_index, [0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        let desc = plan(ActOrder::Desc);
        assert_eq!(desc.order, [8, 1, 6, 5, 2, 3, 0, 7, 9, 4]);
        assert_eq!(desc.group_index, [0, 0, 0, 0, 1, 0, 0, 0, 0, 1]);
        let fixed = plan(ActOrder::Static);
        assert_eq!((&fixed.order, &fixed.group_index), (&desc.order, &none.group_index));
        let group = plan(ActOrder::Group);
        assert_eq!(group.order, [8, 9, 1, 6, 5, 2, 3, 0, 7, 4]);
        assert_eq!(group.group_index, none.group_index);
        assert_eq!(
            [none.fixed_grids, desc.fixed_grids, fixed.fixed_grids, group.fixed_grids],
            [false, false, true, false]
        );
    }

    proptest! {
        #[test]
        fn every_column_is_visited_once_and_groups_have_their_size(
            diagonal in prop::collection::vec(0.0f32..9.0, 1..60),
            group_size in prop::option::of(8usize..40),
            act_order in prop::sample::select(vec![ActOrder::None, ActOrder::Desc, ActOrder::Static, ActOrder::Group]),
        ) {
            let spec = spec(act_order, group_size);
            let plan = column_plan(&diagonal, &spec);
            let mut seen = plan.order.clone();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..diagonal.len()).collect::<Vec<_>>());
            let per_group = spec.columns_per_group(diagonal.len());
            for group in 0..spec.groups(diagonal.len()) {
                let members = plan.group_index.iter().filter(|&&g| g as usize == group).count();
                prop_assert_eq!(members, per_group.min(diagonal.len() - group * per_group));
            }
            if !plan.fixed_grids {
                // Grids are fitted at a group's first column, so its columns must follow each other.
                let along: Vec<u32> = plan.order.iter().map(|&column| plan.group_index[column]).collect();
                let runs = 1 + along.windows(2).filter(|pair| pair[0] != pair[1]).count();
                prop_assert_eq!(runs, spec.groups(diagonal.len()));
            }
        }
    }
}
