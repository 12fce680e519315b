//! Two words for a peer, so that people can tell peers apart. In: a peer id. Out: one of 65,536 names: a label, never an identity,
//! which is why it stands next to a part of the id wherever it is shown.

use skein_protocol::{PeerId, hash};

/// 256 words for how it is.
const FIRST: &str = "\
able agile airy alert alpine amber ample ancient apt arctic ashen autumn azure balmy bare beaming big birch blithe blue bold brave \
breezy brief bright brisk broad bronze brown buoyant busy calm candid careful cedar chalky chatty cheery chief chilly civil clean \
clear clever close cloudy coastal cobalt cool copper coral cosmic cosy crimson crisp curious curly daily dapper daring dawn dear \
deep deft dewy distant downy dreamy dry dusky dusty eager early earnest earthy east easy elder elm ember even evening exact fabled \
faint fair faithful famous far fast feathery fern fiery fine firm first flaxen fleet flint fluffy foggy fond foremost frank free \
fresh friendly frosty gallant gentle giant glad glassy gleaming gliding golden good graceful grand grassy grave great green grey \
happy hardy hasty hazel hazy hearty helpful hidden high hilly honest hopeful humble hushed icy idle indigo inland ivory jade jaunty \
jolly jovial just keen kind lake large late lavish leafy level light lilac little lively lofty lone long loud low loyal lucid lucky \
lunar lush maple marble mellow merry mighty mild mindful misty modest mossy narrow native neat new nimble noble north nutty oaken \
oceanic old olive open orange outer patient pearly pebbly pine placid plain playful plucky polar polite prairie prime prompt proper \
proud pure quick quiet rapid rare ready red regal restful rich ripe river robust rocky rosy round rustic ruby sable sage sandy \
serene sharp shy silent silver slow small \
smooth snowy snug soft solar solid spry stable starry steady sunny swift tall tidy tranquil vivid warm wise";

/// 256 words for what it is.
const SECOND: &str = "\
adder albatross alpaca anchovy ant antelope ape asp auk avocet badger barbel bass bat bear beaver bee beetle bison bittern blackbird \
boar bobcat bream bug bullfinch bunting bustard butterfly buzzard camel canary caribou carp cat catfish chamois char cheetah chick \
chough cicada civet clam cob cod colt condor coot cormorant cow coyote crab crake crane crayfish cricket crow cuckoo curlew cygnet \
dace deer dingo dipper dog dolphin donkey dormouse dotterel dove dragonfly drake duck dunlin dunnock eagle eel egret eider elk \
ermine ewe falcon fawn ferret finch firefly flea flounder fly foal fox frog fulmar gadwall gannet gazelle gecko gibbon giraffe \
goat godwit goldfinch goose goshawk grayling grebe grouse gudgeon guillemot gull guppy haddock hake halibut hamster hare harrier \
hawk hedgehog heron herring hind hobby hoopoe hornet horse husky ibex ibis iguana impala jackdaw jackal jaguar jay kangaroo kestrel \
kid kingfisher kite kittiwake kiwi knot koala lamb lapwing lark leveret limpet linnet lion lizard llama lobster loach loon lynx \
macaw mackerel magpie mallard mammoth marlin marmot marten martin mayfly merlin minnow mole mongoose moorhen moose moth mouse mule \
mullet mussel newt nightjar nuthatch ocelot octopus orca oriole osprey ostrich otter owl ox oyster panda panther parrot partridge \
pelican penguin perch petrel pheasant pigeon pika pike pintail pipit plaice plover pochard pony porpoise ptarmigan puffin puma quail \
rabbit raccoon ram raven ray redpoll redshank redstart reindeer roach robin rook ruff salmon sanderling sandpiper seal shad shark \
sheep shelduck shrew shrike shrimp \
siskin skylark snail snipe sparrow squirrel stork swallow swan tern thrush toad trout turtle vole wren";

/// The name of a peer: `quiet-heron`.
pub fn of(peer: &PeerId) -> String {
    let digest = hash::keyed("skein petname 1", &[&peer.0]).0;
    let word =
        |words: &'static str, at: u8| words.split_whitespace().nth(usize::from(at)).expect("256 words, as a test sees");
    format!("{}-{}", word(FIRST, digest[0]), word(SECOND, digest[1]))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_lists_hold_256_words_each_and_none_twice() {
        for words in [FIRST, SECOND] {
            let unique: BTreeSet<&str> = words.split_whitespace().collect();
            assert_eq!((words.split_whitespace().count(), unique.len()), (256, 256));
            assert!(unique.iter().all(|word| word.bytes().all(|b| b.is_ascii_lowercase()) && word.len() <= 12));
        }
    }

    #[test]
    fn a_name_stays_with_its_peer() {
        assert_eq!(of(&PeerId([7; 32])), of(&PeerId([7; 32])));
        assert_ne!(of(&PeerId([7; 32])), of(&PeerId([8; 32])));
    }
}
