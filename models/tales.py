"""Vocabulary and templates of models.corpus, in the template language that it explains.

In templates a line break stands for nothing: the continuation starts with the space of the text.
"""


def _list(text: str) -> list[str]:
    """Entries between slashes; a line break stands for nothing."""
    return text.replace("\n", "").split("/")


def _table(text: str) -> list[list[str]]:
    """One row per line, fields between commas; an indented line goes on with the last row."""
    return [row.split(", ") for row in text.strip().replace("\n ", " ").split("\n")]


GIRLS = "Ana Clara Elena Inés Julia Lola Marta Nora Paula Rosa Sara Vera".split()
BOYS = "Bruno Diego Hugo Iván Leo Lucas Mateo Nico Oscar Pablo Simón Tomás".split()
PERSONS = {"f": "girl baker shepherd painter gardener miller teacher sailor inventor queen".split(),
           "m": "boy baker shepherd painter gardener miller teacher sailor inventor king".split()}
TRAITS = "kind brave clever curious patient quiet cheerful careful gentle loyal shy young".split()

# singular, plural, look, home, homes, food, gift (what it can do), covering
ANIMALS = _table("""
fox, foxes, red, a den, dens, berries and eggs, run very fast, a long soft tail
bear, bears, brown, a cave, caves, honey and fish, climb tall trees, thick brown fur
goat, goats, white, a barn, barns, grass and leaves, jump from rock to rock, two curved horns
owl, owls, grey, a hollow tree, hollow trees, mice and moths, see in the dark, two big round eyes
mouse, mice, tiny, a hole, holes, seeds and cheese, hide almost anywhere, two round ears
hedgehog, hedgehogs, round, a pile of leaves, piles of leaves, snails and beetles, roll into a ball,
 sharp spines
rabbit, rabbits, soft, a burrow, burrows, clover and carrots, hear every small sound, two long ears
donkey, donkeys, grey, a stable, stables, hay and apples, carry heavy bags, a small dark mane
crow, crows, black, a nest, nests, seeds and crumbs, open almost any box, shiny black feathers
frog, frogs, green, a pond, ponds, flies and worms, swim and jump, smooth green skin
badger, badgers, striped, a burrow, burrows, roots and worms, dig long tunnels, a black and white face
duck, ducks, yellow, a pond, ponds, weeds and snails, swim and fly, warm yellow feathers
cat, cats, striped, a quiet house, quiet houses, fish and milk, walk without a sound, long white whiskers
squirrel, squirrels, red, a tall tree, tall trees, nuts and seeds, remember a hundred places, a wide red tail
""")

THINGS = _list("""bell/kite/lantern/book/map/key/drum/hat/scarf/basket/boat/clock/cup/flute/coin/ladder/
whistle/blanket/button/mirror/ring/wagon/bucket/violin""")
LOOKS = "red blue green yellow silver golden wooden tiny big old new shiny round small heavy pretty".split()
NUMBERS = "two three four five six seven ten twelve".split()

PLACES = _list("""in the forest/by the river/on the hill/at the market/near the old mill/
in the village square/under the stone bridge/behind the bakery/in the garden/beside the lake/
at the foot of the mountain/on the beach/in the tall tower/at the edge of the meadow/on the old bridge/
near the lighthouse/in the library/beside the well/on the farm/in the valley""")
LANDS = _list("""by the river/on the hill/in the valley/beside the lake/at the foot of the mountain/
near the sea/at the edge of the forest/behind the hills/on a small island""")
SPOTS = _list("""under the table/behind the door/in the kitchen/on the roof/under an apple tree/inside a box/
beside the fire/on a high shelf/near the window/under the bed/behind a large stone/in the long grass/
on top of the wall""")
FOODS = _list("""warm bread/apple pie/honey cake/vegetable soup/plum jam/goat cheese/bean stew/nut bread/
rice pudding/onion soup/lemon cake/hot chocolate/pear juice""")

# (beginnings of a first sentence, weather that goes with them)
DAY = (_list("""One morning/One day/One afternoon/Early on Sunday/On Monday/At noon/One fine day/Long ago/
Just after breakfast"""), _list("""the sun was shining/the wind was blowing/it was raining/snow was falling/
the sky was clear/the clouds were dark/the air was cold and still/the birds were singing/
the leaves were falling/the air was warm"""))
NIGHT = (_list("One night/One evening/Late at night/On a quiet evening/At midnight"), _list("""
the wind was blowing/it was raining/snow was falling/the stars were bright/the moon was full/
the air was cold and still/an owl was calling"""))

# base, past, participle, rest
ACTIONS = _table("""
climb, climbed, climbing, the hill
sing, sang, singing, an old song
read, read, reading, a long book
paint, painted, painting, the fence
bake, baked, baking, a cake
count, counted, counting, the stars
plant, planted, planting, a tree
carry, carried, carrying, water from the well
pick, picked, picking, ripe plums
build, built, building, a small bridge
write, wrote, writing, a letter to a friend
feed, fed, feeding, the hens
fly, flew, flying, a kite
draw, drew, drawing, a map of the valley
catch, caught, catching, a fish
sweep, swept, sweeping, the floor
dance, danced, dancing, in the square
swim, swam, swimming, across the lake
tell, told, telling, a funny story
wash, washed, washing, the windows
follow, followed, following, the river
""")

RIDDLES = [row.split("/") for row in """
What has many teeth but cannot bite?/A comb
What has hands but cannot clap?/A clock
What runs all day but never gets tired?/The river
What has four legs but cannot walk?/A table
What gets wet while it dries?/A towel
What goes up but never comes down?/Your age
What can fill a room but takes no space?/The light
""".strip().split("\n")]

WHYS = [row.split("/") for row in """
Why is the snow white/Because it sends back all the light
Why do birds fly south/Because the winter is too cold for them
Why does the moon change/Because the sun shines on it from another side
Why do leaves fall/Because the trees want to sleep
Why is the sea salty/Because the rivers bring salt from the hills
Why do stars shine/Because they are suns that are far away
Why does bread rise/Because it is full of tiny bubbles
Why do we dream/Because the mind likes to play at night
""".strip().split("\n")]

OPENING = """[{time}, {A} the {Akind} was {doing} {place}|{A} was a {trait} {Akind} who lived {place}|Once
 there was a {trait} {Akind} named {A}, who loved to {do}|In a small house {land} lived a {Akind} named
 {A}|{time}, a {trait} {Akind} named {A} went for a walk {place}|Once upon a time, a {Akind} named {A} lived
 {place}]. """
SCENE = """[{Weather}, and everything was quiet. |{Weather}. ||It was a good day to {do2}. |Nothing ever
 happened {place}. |{A.He} liked to {do2} when {weather2}. |Nobody in the whole valley was as {trait2} as {A}.
 |Although {A.he} was {trait2}, {A.he} had only a few friends. |{A.He} knew every path and every stone
 {place}. |{A.His} [mother|father|grandmother] always said that [patience is a kind of magic|the world is full
 of wonders|nobody is too small to help]. |Every day {A.he} {did2}, and every night {A.he} [slept well|dreamed
 of the sea|looked at the stars]. |{A.He} was [tired|hungry|not in a hurry], but {A.he} kept
 [walking|working|smiling]. ]"""
MEET = """[Then {A.he} met {B}, a {traitB} {Bkind}. |Just then, a {Bkind} named {B} came along. |{A.His}
 friend {B} the {Bkind} was {doing2}. |Soon {A.he} saw {B} the {Bkind}, who was {doing2}. |Behind {A.him}
 stood {B}, the {traitB} {Bkind}. ]"""
GREET = """["Good [morning|evening|day], {B}," said {A}. |"Hello, {A}," said {B}. |"What are you doing here?"
 asked {B}. "I am {doing}," said {A}. |"You look [sad|happy|tired], {A}," said {B}. ||"May I help you?" asked
 {B}. "Yes, please," said {A}. ]"""
ENDING = """[From that day on, {A} and {B} were [good|best|close] friends.|That night, {A} slept [very
 well|like a stone|with a smile].|They [laughed|danced|sang] until the [sun went down|moon came up|stars came
 out].|And {A} never forgot {B}.|{A} went home[, tired but happy|, full of joy| and told everyone about
 it].|"What a [wonderful|strange|lovely] day," said {A}.|Then they shared some {food} and went home
 together.|{B} smiled, and {A} smiled too.|{A.He} had learned that [a good friend is better than gold|small
 steps can go a long way|it is good to ask for help|every question is worth asking|sharing makes everything
 better|even the smallest helper can be strong].]"""

PLOTS = {
    "lost": """[{A} had a {look} {thing}, and {A.he} took it everywhere|{A.His} grandmother had given {A.him}
 a {look} {thing}|{A} loved {A.his} {look} {thing} more than anything]. {scene}[But one day the {thing} was
 gone|But when {A.he} woke up, {A.he} could not find the {thing}|Suddenly {A.he} saw that the {thing} was
 missing]. {A} looked {spot} and {spot2}, but it was not there. {meet}["Have you seen my {thing}?" asked {A}.
 "[No, but I will help you|I think I saw it {spot3}]," said {B}|"I have lost my {thing}," said {A}. "Let us
 look for it together," said {B}|"Where is my {thing}?" asked {A}. "Maybe it is {spot3}," said {B}]. They
 looked [everywhere|for a long time|in every corner|until it was dark]. [At last they found the {thing}
 {spot3}|In the end it was {B} who found it {spot3}|And there it was, {spot3}]. {A} was so [happy|glad] that
 {A.he} [gave {B} a big hug|gave {B} some {food}|began to [sing|dance|cry]]. """,
    "friend": """{scene}{A} was lonely, because {A.he} had no one to talk to. {meet}{greet}["Do you like
 {food}?" asked {A}. "I love it," said {B}|"Can you teach me to {do2}?" asked {A}. "Of course I can," said
 {B}|"Would you like to {do2} with me?" asked {B}. "Yes, I would," said {A}]. [They sat down {spot} and ate
 some {food}|They walked together until they came to a bench|So they {did2} together]. {B} told {A} about [a
 country far away|the mountains|{B.his} mother and father|the old days|a {sg} that could {do3}|{number} {look}
 {thing}s], and {A} listened [with wide eyes|carefully|without a word]. """,
    "cook": """{scene}{A} wanted to make some {food} for {B} the {Bkind}. {A.He} needed {number}
 [eggs|nuts|spoons of salt|spoons of butter] and a cup of [milk|flour|sugar|water], but the kitchen was empty.
 So {A.he} went {to} and asked for help. [An old farmer|A tall woman|A friendly boy|A merry sailor] gave
 {A.him} everything {A.he} needed. {A.He} [mixed|stirred] it all in a {look} bowl and waited for [an hour and
 a half|a long time|the fire to grow hot]. [The smell was wonderful|The whole house smelled good|Soon it was
 ready|Even the {pl} came to see what it was]. ["This is the best {food} in the world," said {B}|"Thank you,
 {A}," said {B}|"May I have some more?" asked {B}]. """,
    "invent": """{scene}{A} had an idea. {A.He} wanted to build a machine that could {do}. {A.He} took
 {number} wheels, a {look} {thing} and a [silver|golden] [spring|chip|lamp], and {A.he} worked [all night|for
 {number2} days|until the sun came up]. {meet}"What is that?" asked {B}. "It is a machine," said {A}. "It can
 {do}, and it never gets tired." [{B.He} pushed the {look2} button, and the wheels began to turn|{A} pulled
 the {look2} handle, and a small light went on]. [At first the machine only made a funny noise|First it shook
 and whistled|For a moment nothing happened]. Then it [{did}|wrote a short poem|played a lovely song], and {B}
 [clapped|cheered|laughed out loud]. """,
    "storm": """{scene}Then a storm came over the [mountains|valley|sea]. The wind [howled|roared], and the
 rain fell [all night|for {number} days|on the roof like {number} drums]. {meet}{B} was afraid of the
 [thunder|dark|storm]. "Do not be afraid," said {A}. "We are safe {spot}." They [lit a {look} lantern|made a
 fire|found a {look} blanket] and [told each other stories|waited for the morning|counted to a hundred]. [In
 the morning, the sky was blue again|When they woke up, the storm was over|Little by little, the rain
 stopped]. """,
    "race": """{scene}{A} and {B} the {Bkind} wanted to know who was [faster|stronger|braver]. "I can run
 faster than you," said {B}. ["We will see," said {A}|"Maybe you can," said {A}|"Then let us have a race,"
 said {A}]. [The old {sg} counted to three, and they|They] ran [down the road|through the forest|around the
 lake|over the bridge]. {B} was [much|a little] faster, but [{B.he} stopped to eat some {food}|{B.he} fell
 into a puddle|{B.he} took the wrong path]. [{A} did not stop|{A} ran on, step by step|{A} went back to help
 {B.him}]. [In the end {A} won the race|In the end they crossed the line together|Nobody knew who had won, and
 nobody cared|When {B} came to the big tree, {A} was already there]. [Everyone cheered|The prize was a {look}
 {thing}]. """,
    "gift": """Tomorrow was the birthday of {B} the {Bkind}, and {A} had no gift. {scene}{A.He} went {to},
 where an old {seller} was selling {number} {look} {thing}s. "How much is a {thing}?" asked {A}. "It costs
 {number2} coins," said the old {seller}. But {A} had only one coin. [So {A.he} decided to make something|The
 next day {A.he} had an idea|{A.He} thought about it all day|{A.He} sat down {spot} and thought]. [{A.He}
 painted a picture of {B}|{A.He} made some {food}|{A.He} wrote a song about {B}], and it took {A.him} [all
 day|the whole night]. ["It is the best gift I have ever had," said {B}|"How did you know?" asked {B}, and
 {B.he} was very happy|{B} opened the box and cried with joy]. """,
    "riddle": """{scene}{meet}{greet}"I have a riddle for you," said {B}. {riddle} {A} thought [for a long
 time|about it|hard]. "{answer}!" said {A}. ["That is right," said {B}|"Very good," said {B}|"How clever you
 are," said {B}]. {B} gave {A} a {look} {thing}, and {A} [put it in {A.his} bag|thanked {B.him}|carried it
 home]. """,
    "repair": """{scene}The old [bridge|mill|clock|bell] {place2} was broken, and [nobody knew how to repair
 it|nobody had time to repair it|everyone was sad about it]. {meet}["We must do something," said {B}|"Let us
 try," said {A}|"It is too hard for me," said {B}]. {A} brought a [long|tall|wooden] ladder, and {B} brought
 {number} [nails|ropes|boards]. They worked [side by side|from morning to night|without a break]. [When it was
 done|After {number2} days], all the people of the village came to see it. "[You have saved us|It is as good
 as new|We are proud of you]," said the mayor. """,
    "treasure": """{scene}{A} found an old map {spot}. It showed a path from the [river|village|bridge] to the
 [mountain|lake|tower], and at the end of the path there was a [red|black|golden] cross. {meet}["What does it
 mean?" asked {B}. "It means treasure," said {A}|"May I come with you?" asked {B}. "Of course," said {A}|"Look
 at this map," said {A}]. They walked for {number} [hours|days], and they crossed {number2}
 [hills|rivers|bridges]. [When they were hungry, they ate {food}|At night they slept under the stars|The way
 was long, but they were not afraid]. At the end of the path stood a {look} box. Inside it they found [a
 {look2} {thing}|{number} {look2} {thing}s|nothing but a letter]. ["I wonder who left it here," said {B}|"This
 is the best day of my life," said {B}|"The way was the real treasure," said {B}]. """,
    "letter": """{scene}A letter came for {A}. It was from {B} the {Bkind}, who lived [far away|{place2}|on
 the other side of the mountain]. "Dear {A}," it said, "I am [well|sick|lonely], and I think of you every day.
 [Please come and see me.|Here there are {number} {pl} and no one to talk to.|Do you still like to {do2}?]
 Your friend, {B}." {A} [read it twice|read it {number2} times|smiled when {A.he} read it]. Then {A.he} [took
 {A.his} {look} {thing}|packed some {food}|closed the door] and [set out at once|began to walk|went to the
 station]. [The road was long and steep|On the way {A.he} {did2}|It took {A.him} {number2} days]. When {B}
 opened the door, [they were both very happy|{B.he} could not believe {B.his} eyes|there was some {food} on
 the table]. """,
    "sleep": """{scene}That evening {A} could not sleep. {A.He} [counted {number} {pl}|drank some warm
 milk|looked at the moon], but it did not help. {meet}["Why are you still awake?" asked {B}. "I am thinking
 about tomorrow," said {A}|"I cannot sleep," said {A}. "Then I will tell you a story," said {B}|"Are you
 afraid of the dark?" asked {B}. "A little," said {A}]. {B} [sat down beside {A.him}|brought a {look}
 blanket|lit a {look} lantern] and told {A.him} about a {trait} {sg} that [wanted to {do}|lost its
 {thing}|lived on the moon]. [The {sg} had {number2} friends, and all of them could {gift}|Every night the
 {sg} ate some {food}|The {sg} was small, but it was never afraid]. [Before the story was over, {A} was
 asleep|Soon {A.his} eyes were closed|"Good night, {A}," said {B}]. """,
    "question": """{scene}{meet}"{why}?" asked {B}. [{A} did not know|It was a good question|{A} looked at the
 sky and thought]. [So they asked the old {sg}. "{because}," said the {sg}.|They looked in {number} books
 until they found the answer. "{because}," read {A}.|"I have never thought about it," said {A}. So they went
 to a wise old {seller}. "{because}," said the {seller}.] "Now I have another question," said {B}. "{why2}?"
 And {A} [laughed|smiled|sighed], because {B} never stopped asking. """,
    "thief": """{scene}{A} had made some {food}, but when {A.he} came back, [half of it|all of it] was gone.
 "Who has eaten my {food}?" {A.he} asked. On the floor there were {number} small footprints. [They led
 {to}|They went out of the window and {to}], and {A} followed them. There sat {B} the {Bkind}, with
 [crumbs|sugar|a bit of cake] on {B.his} [chin|nose]. ["I was so hungry," said {B}|"It smelled so good," said
 {B}|"I am sorry," said {B}]. {A} was [angry|surprised], but only for a moment. "Next time, please ask,"
 {A.he} said, and they [baked some more|washed the plates|sat down to talk] together. """,
    "seed": """{scene}{A} planted a [small|round|black] seed {place2}. "It will never grow," said {B} the
 {Bkind}. But {A} gave it water every [day|morning|evening]. After {number} days there was a little green
 leaf. After {number2} weeks the plant was taller than [{A}|the house|a {sg}]. [On it grew {look}
 [flowers|apples|pumpkins]|It had {number} branches, and on every branch sat a {sg}|At the top of it there was
 a {look} flower]. ["You were right, and I was wrong," said {B}|{B} could not believe {B.his} eyes|"How did
 you do that?" asked {B}. "I waited," said {A}]. """,
    "band": """{scene}{A} played the [drum|flute|violin], but {A.he} always played alone. One day {A.he} heard
 music {place2}. It was {B} the {Bkind}, who was playing the [trumpet|piano|guitar]. "Let us make a band,"
 said {A}. {number} {pl} came and sang, and an old {sg2} [clapped|danced|kept time with a spoon]. [They were
 not very good, but they were very loud|At first they sounded terrible|Soon the whole village was dancing].
 [Every Sunday they played in the square|After {number2} weeks they gave their first concert|People came from
 far away to hear them], and [the children danced|nobody went home early|even the mayor sang along]. """,
    "wish": """{scene}{A} found a {look} [bottle|shell|feather] {spot}. When {A.he} touched it, a small voice
 said, "You have one wish." {A} thought about it for a long time. ["I wish I could {gift}," said {A}|"I wish
 for {number} {look2} {thing}s," said {A}|"I wish it were summer all year," said {A}]. {meet}["And what do you
 wish for?" asked {A}. "I have everything I need," said {B}.|"Be careful," said {B}. "Wishes are heavy."|"Is
 it a good wish?" asked {B}. "I think so," said {A}.] [For a moment nothing happened.|The wind became
 warm.|There was a sound like a bell.] Then {A} [laughed|jumped with joy|closed {A.his} eyes], and the wish
 came true. """,
    "school": """{scene}{A} was the new teacher of the village school. The pupils were {number} {pl} and a
 {trait2} {sg2}. [They were all very loud|None of them could read|They wanted to know everything]. On the
 first day {A} showed them how to {do2}. The {pl} learned it quickly, but the {sg2} was slow. "I will never
 learn it," said the {sg2}. "You will," said {A}. "Nobody is born with it." They tried it [again and
 again|{number2} times|every day for a month]. At last the {sg2} could do it better than [all the others|{A}],
 and {B} the {Bkind}, who was [watching from the window|sweeping the yard], clapped. """,
}

SKETCHES = {
    "animal": """A {sg} is [a {alook} animal|an animal] with {cover}. It lives in {home} and eats {afood}. [A
 {sg} can {gift}, and it is never afraid of the rain|It can {gift}, but it cannot {do}]. {place} there {are}
 {count} {sgpl}. Every [morning|evening] {they} {go} to the [river|field|forest] to [drink|play|look for
 food], and at night {they} {sleep} in {theirhome}. """,
    "animals": """{Pl} are {alook} animals. They live in {homes} and eat {afood}. They can {gift}, [and they
 like to play|but they are shy|and their young learn it quickly]. [In winter|In summer|At night] most {pl}
 stay [in their {homes}|close to their friends]. One {sg} {place} is [different|famous]. Its name is {A}, and
 it [wants to {do}|knows how to {do}|never sleeps]. """,
    "village": """There is a small village {land}. Its houses are [white|old|tall] and its doors are {color}.
 [A {Akind}|{A} the {Akind}] lives in the [first|last|smallest] house and likes to {do}. [The {Bkind} next
 door|{A.His} neighbour|{B} the {Bkind}] has {number} {pl} and a {look} {thing}. On [Sundays|Mondays|warm
 evenings] the people [dance in the square|sit by the fire|sing old songs], and the children {do2}. [Nobody is
 ever [in a hurry|alone|hungry] there|Everyone there knows {A}|There {are} also {count} {sgpl}, and nobody
 knows why]. """,
    "season": """In [spring the days are mild and the trees are full of flowers|summer the days are long and
 the fields are golden|autumn the leaves are red and the nights are cold|winter the hills are white and the
 lake is frozen]. The {Akind} wears a {look} [coat|hat|scarf] and the {Bkind} makes {food}. {count} {sgpl}
 {sleep} in {theirhome}. [Some people {do} every day|{A} and {B} {do} together|Nobody wants to {do} at this
 time of the year]. When the [evening|morning] comes, [everything is quiet|the birds sing|the sky turns
 red|{number2} {pl} come out of their {homes}|a little {sg} looks for {afood}]. """,
    "person": """{A} is a {trait} {Akind} who lives {place}. {A.He} has a {look} {thing} and {number} {pl}.
 Every [morning|evening|Sunday] {A.he} {does}, and then {A.he} {does2}. {A.His} friend {B} is a {Bkind}, and
 {B.he} [likes|wants|loves] to {do3}. [They often share some {food} together|They meet {place2} when the
 weather is good|{A} thinks that {B} is very {traitB}, and {B} thinks so too]. [When it rains, they stay at
 home|{A.He} says that {pl} are the best animals|Some day they will travel around the world|They have known
 each other for {number2} years]. """,
    "recipe": """To make {food}, you need {number} [eggs|nuts|apples], a cup of [milk|flour|water] and a
 little [salt|sugar|butter]. First mix everything in a {look} bowl. Then [wait for an hour|put it on the
 fire|stir it {number2} times]. When it is [ready|hot|golden], call your friends. {A} always makes it {place},
 and {pl} come from everywhere to taste it. [{A.He} says that the secret is time|{B} the {Bkind} eats most of
 it|It is even better on the next day]. """,
    "compare": """A {sg} can {gift}, and a {sg2} can {gift2}. {Pl} live in {homes}, but {pl2} live in
 {homes2}. Both of them [like the sun|sleep when it rains|are friends of {A} the {Akind}]. {A} has {number}
 {pl} and one {sg2}. The {pl} eat {afood}, and the {sg2} eats {afood2}. [When they are hungry, they all come
 to the door|Every evening {A.he} counts them|They never fight]. """,
}

# short texts full of names: from them a model learns first who is who
ANECDOTES = """
{A} and {B} sat {spot}. {A} looked at {B}, and {B} looked at {A}.
{A} gave {B} a {look} {thing}. {B} thanked {A}, and {A} smiled.
"Where is {A}?" asked {B}. "I am here," said {A}. {B} [laughed|smiled|was glad], and {A}
 [laughed|smiled] too.
{A} the {Akind} loved {food}. {A} ate it every day. "May I try it?" asked {B}. "Of course," said {A}.
{A} is a {Akind}, and {B} is a {Bkind}. {A} likes to {do}. {B} likes to {do2}. {A} thinks that {B} is {trait}.
Once a {Akind} named {A} met a {Bkind} named {B}. {B} taught {A} to {do}, and {A} taught {B} to {do2}.
{A} lives {place}. {B} lives {place2}. When {A} visits {B}, {B.he} is happy. When {B} visits {A},
 {A.he} is happy.
"Good morning, {A}," said {B}. "Good morning, {B}," said {A}. {A} was {doing}, and {B} was {doing2}.
""".strip().replace("\n ", " ").split("\n")

OPENING, SCENE, MEET, GREET, ENDING = (t.replace("\n", "") for t in (OPENING, SCENE, MEET, GREET, ENDING))
PLOTS = {name: t.replace("\n", "") for name, t in PLOTS.items()}
SKETCHES = {name: t.replace("\n", "") for name, t in SKETCHES.items()}
