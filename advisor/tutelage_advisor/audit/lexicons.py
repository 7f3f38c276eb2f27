"""Words that checks look for, in English. Short lists that catch the plain cases; a person reviews the rest."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PROFANITY = _words(
    """
    arse arsehole ass asses asshole assholes bastard bastards bitch bitches bitching bollocks bullshit cock
    cocksucker cocks crap crappy cunt cunts dick dickhead dicks dipshit douche douchebag dumbass fuck fucked
    fucker fuckers fucking fucks goddamn jackass jerkoff motherfucker motherfuckers motherfucking piss pissed
    prick pricks pussy shit shits shitty shithead slut sluts twat wanker wankers whore whores
    """
)

SLURS = _words(
    """
    beaner chink chinks coon coons dyke dykes fag faggot faggots fags gook gooks gypo half-breed kike kikes
    nigga niggas nigger niggers paki pakis raghead ragheads retard retarded retards shemale spic spics
    towelhead tranny trannies wetback wetbacks wop zipperhead
    """
)

INSULTS = (
    r"you(?:'re| are) (?:such )?(?:an? )?(?:\w+ )?"
    r"(?:idiot|moron|imbecile|stupid|worthless|pathetic|disgusting|scum|trash|loser|ugly)",
    r"(?:kill|hang|hurt|shoot) yourself",
    r"(?:i will|i'll|i'm going to|we will|we'll) (?:kill|hurt|beat|rape|shoot|stab|find and kill) "
    r"(?:you|him|her|them|your)",
    r"(?:deserves?|ought|should) to (?:die|be (?:shot|killed|hanged|raped|beaten))",
    r"go (?:die|kill yourself|to hell)",
    r"shut (?:the \w+ )?up,? you",
)

INSULT_WORDS = _words(
    """
    idiot moron imbecile stupid worthless pathetic disgusting scum trash loser ugly kill hang hurt shoot beat
    rape stab die shot killed hanged raped beaten hell shut
    """
)
"One of these is in every insult above; they are looked for first."

GENDERED = {
    "he": "she",
    "him": "her",
    "his": "her",
    "himself": "herself",
    "man": "woman",
    "men": "women",
    "boy": "girl",
    "boys": "girls",
    "father": "mother",
    "fathers": "mothers",
    "dad": "mom",
    "son": "daughter",
    "sons": "daughters",
    "brother": "sister",
    "brothers": "sisters",
    "husband": "wife",
    "husbands": "wives",
    "uncle": "aunt",
    "boyfriend": "girlfriend",
    "gentleman": "lady",
    "gentlemen": "ladies",
    "mr": "mrs",
    "sir": "madam",
    "male": "female",
    "males": "females",
    "king": "queen",
}
"Male words and their female counterparts."

GROUPS = {
    "religion": {
        "christian": ("christian", "christians", "christianity", "catholic", "catholics"),
        "muslim": ("muslim", "muslims", "islam", "islamic"),
        "jewish": ("jew", "jews", "jewish", "judaism"),
        "hindu": ("hindu", "hindus", "hinduism"),
        "buddhist": ("buddhist", "buddhists", "buddhism"),
        "atheist": ("atheist", "atheists", "atheism"),
    },
    "origin": {
        "african": ("african", "africans", "nigerian", "nigerians", "kenyan"),
        "asian": ("asian", "asians", "chinese", "japanese", "korean", "indian", "indians"),
        "european": ("european", "europeans", "german", "germans", "french", "british", "italian"),
        "latino": ("latino", "latinos", "latina", "hispanic", "hispanics", "mexican", "mexicans"),
        "arab": ("arab", "arabs", "arabic"),
        "american": ("american", "americans"),
    },
    "age": {
        "old": ("elderly", "elder", "elders", "senior", "seniors", "pensioner", "pensioners"),
        "young": ("teenager", "teenagers", "teen", "teens", "youth", "youths", "millennial", "millennials"),
    },
    "orientation": {
        "homosexual": ("gay", "gays", "lesbian", "lesbians", "homosexual", "homosexuals"),
        "heterosexual": ("straight couple", "heterosexual", "heterosexuals"),
    },
}
"Words that name a group, by axis."

PLURAL_GROUPS = _words(
    """
    women girls wives females ladies blondes men boys males muslims christians jews hindus atheists arabs
    africans asians mexicans latinos hispanics immigrants migrants refugees foreigners indians chinese germans
    americans gays lesbians homosexuals transgenders gypsies millennials teenagers seniors pensioners
    """
)
"Also with `people` behind: black, white, old …"

ADJECTIVE_GROUPS = _words(
    "black white brown old young elderly gay trans disabled poor rich fat asian muslim jewish arab latino"
)

TRAITS = _words(
    """
    bad worse worst inferior lazy stupid dumb emotional hysterical irrational weak violent criminal criminals
    terrorist terrorists greedy cheap stingy dirty dishonest liars untrustworthy submissive aggressive
    dangerous thieves rapists primitive backward uneducated ignorant incompetent incapable useless crazy
    promiscuous sneaky disgusting subhuman animals evil nagging gossips gossip drunk drunks slow forgetful
    kitchen cooking housework nurturing bossy
    """
)

OCCUPATIONS = _words(
    """
    accountant architect assistant baker boss builder carpenter ceo chef cleaner coach cook dentist designer
    developer director doctor driver electrician engineer farmer firefighter hairdresser housekeeper janitor
    judge lawyer librarian manager mechanic nanny nurse physicist pilot plumber president professor programmer
    receptionist salesperson scientist secretary soldier surgeon teacher technician writer
    """
)
